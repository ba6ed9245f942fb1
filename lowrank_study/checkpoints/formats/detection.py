"""Detect a file's format from its first bytes: weights, or something else in their place."""

from lowrank_study.checkpoints.formats.source_file import SourceFile, shown
from lowrank_study.errors import InputError

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def refuse_stand_in(file: SourceFile) -> None:
    """Refuse a file that was downloaded instead of the weights: a pointer or a web page."""
    head = bytes(file.read(0, min(64, file.size)))
    if head.startswith(b"version https://git-lfs"):
        raise InputError(
            f"{shown(file.path)}: is a git-lfs pointer, not the weights themselves; run "
            "`git lfs pull` in its folder, or download the file"
        )
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise InputError(
            f"{shown(file.path)}: is a web page instead of weights; download the file itself "
            "(on the Hugging Face hub, its address has /resolve/ and not /blob/)"
        )


def format_of(file: SourceFile) -> str:
    """Detect the format from the first bytes; use the name only if they leave it open."""
    head = bytes(file.read(0, min(9, file.size)))
    if head[:4] == b"GGUF":
        return "gguf"
    if len(head) == 9 and head[5:] == b"\0\0\0{":
        return "safetensors"
    if head[:2] == b"PK" or (head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5")):
        return "pickle"
    return "pickle" if file.path.suffix.lower() in _PICKLE_SUFFIXES else "safetensors"
