"""The table of file formats, and how a file's format is recognised."""

from lowrank_study.checkpoints.formats.gguf_file import GGUF
from lowrank_study.checkpoints.formats.safetensors_file import SAFETENSORS
from lowrank_study.checkpoints.formats.source_file import SourceFile, shown
from lowrank_study.checkpoints.formats.stored import Format
from lowrank_study.checkpoints.formats.torch_file import PICKLE
from lowrank_study.errors import InputError

FORMATS = (SAFETENSORS, GGUF, PICKLE)
"""All formats; a folder's weights are read in the first that it has."""

_ALSO_PICKLES = (*PICKLE.suffixes, ".pkl", ".pickle", ".ckpt")

_TO_CONVERT = (
    "convert it where you trust it, with `torch.load(path, weights_only=True)` and "
    "`safetensors.torch.save_file(tensors, path)`, or open it with allow_pickle"
)


def format_of(file: SourceFile, *, allow_pickle: bool) -> Format:
    """Recognise the format by the first bytes, and by the name only if they don't decide."""
    _refuse_substitute(file)
    head = bytes(file.read(0, min(9, file.size)))
    found = next((each for each in FORMATS if each.recognises(head)), None)
    if found is None:
        found = PICKLE if file.path.suffix.lower() in _ALSO_PICKLES else SAFETENSORS
    if found.runs_code and not allow_pickle:
        raise InputError(
            f"{shown(file.path)}: is a PyTorch pickle, which can run code when it is loaded; "
            + _TO_CONVERT
        )
    return found


def _refuse_substitute(file: SourceFile) -> None:
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
