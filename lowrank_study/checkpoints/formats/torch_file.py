"""Read PyTorch's own files, which are pickles, only on explicit request.

A pickle is a program. `torch.load(weights_only=True)` runs a restricted one, which has had
security holes (CVE-2025-32434), so such a file is refused by its first bytes, whatever its name,
unless `allow_pickle=True`.
"""

import pickle
import zipfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lowrank_study.checkpoints.formats.source_file import SourceFile, damaged, hostile, shown
from lowrank_study.checkpoints.formats.stored import Format, Stored
from lowrank_study.checkpoints.formats.tensors import Array, TensorInfo
from lowrank_study.errors import InputError

if TYPE_CHECKING:
    import torch

_NESTED = ("state_dict", "model_state_dict", "model", "module")
"""Keys under which training scripts keep the weights."""

_TAIL = 2**16 + 22
"""Longest end of a zip file: its end record with a comment."""

_MAX_DIRECTORY = 2 * 2**20


def read_torch(files: Sequence[SourceFile]) -> Stored:
    """Load the tensors of some .bin or .pt files."""
    loaded: dict[str, torch.Tensor] = {}
    tensors: list[TensorInfo] = []
    for file in files:
        for name, tensor in _load(file).items():
            loaded[name] = tensor
            dtype = str(tensor.dtype).removeprefix("torch.")
            shape = tuple(tensor.shape)
            tensors.append(
                TensorInfo(name=name, dtype=dtype, shape=shape, start=0, stop=0, file=file)
            )

    def read_rows(info: TensorInfo, first: int, last: int) -> Array:
        info.file.check_unchanged()
        tensor = loaded[info.name].detach()
        part = tensor[first:last] if info.shape else tensor
        wide = part.double() if info.dtype == "float64" else part.float()
        return np.array(wide.contiguous().numpy())

    return Stored(
        tensors=tensors,
        metadata={},
        config={},
        read_rows=read_rows,
        flags=["read from a PyTorch pickle with weights_only"],
    )


PICKLE = Format(
    name="pickle",
    suffixes=(".bin", ".pt", ".pth"),
    recognises=lambda head: (
        head[:2] == b"PK" or (head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"))
    ),
    runs_code=True,
    read=read_torch,
)


def _load(file: SourceFile) -> "dict[str, torch.Tensor]":
    where = shown(file.path)
    is_zip = bytes(file.read(0, min(4, file.size))) == b"PK\x03\x04"
    if is_zip:
        _check_zip(file)
    import torch

    try:
        loaded: Any = torch.load(file.path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{where}: holds more than tensors ({shown(error, 100)}); "
            "save only model.state_dict(), as safetensors"
        ) from None
    except Exception as error:  # a damaged pickle can make the loader raise anything
        raise damaged(where, f"can't be loaded ({shown(error, 100)})") from None
    file.check_unchanged()
    nested = [
        key for key in _NESTED if isinstance(loaded, dict) and isinstance(loaded.get(key), dict)
    ]
    if len(nested) == 1:
        loaded = loaded[nested[0]]
    if not isinstance(loaded, dict) or not loaded:
        raise InputError(
            f"{where}: holds a {type(loaded).__name__}, not named tensors; "
            "save model.state_dict(), as safetensors"
        )
    for name, tensor in loaded.items():
        plain = isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided
        if not isinstance(name, str) or not plain or tensor.is_quantized or tensor.is_meta:
            raise InputError(
                f"{where}: entry {shown(name)} isn't a plain dense tensor; "
                "save only model.state_dict(), as safetensors"
            )
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise InputError(
                f"{where}: tensor {shown(name)} claims more numbers than the file stores; "
                "it is an expanded view or hostile: save it with .contiguous()"
            )
    return loaded


def _check_zip(file: SourceFile) -> None:
    """Refuse an archive with compressed or too many members, so that nothing is inflated."""
    where = shown(file.path)
    directory = _directory_start(file)
    try:
        with open(file.path, "rb") as opened, zipfile.ZipFile(opened) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, OverflowError) as error:
        raise damaged(where, f"is not a valid zip archive ({shown(error)})") from None
    total = 0
    for member in members:
        total += member.file_size
        if member.compress_type != zipfile.ZIP_STORED or total > file.size:
            raise hostile(
                where,
                f"member {shown(member.filename)} is compressed or larger than the file, "
                "which PyTorch never writes, so it may be a zip bomb",
            )
    _check_places(file, members, directory)


def _directory_start(file: SourceFile) -> int:
    """Return where the zip directory begins, after a check of its size."""
    where = shown(file.path)
    tail = file.read(max(0, file.size - _TAIL), file.size)
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) - end < 22:
        raise damaged(where, "its zip directory is missing, so it is truncated")
    size = int.from_bytes(tail[end + 12 : end + 16], "little")
    begin = int.from_bytes(tail[end + 16 : end + 20], "little")
    record = file.size - len(tail) + end
    if tail[end - 20 : end - 16] == b"PK\x06\x07":  # zip64 puts the true sizes 76 bytes before
        size = int.from_bytes(tail[end - 36 : end - 28], "little")
        begin = int.from_bytes(tail[end - 28 : end - 20], "little")
        record -= 76
        if tail[end - 76 : end - 72] != b"PK\x06\x06":
            raise damaged(where, "its zip64 record is missing")
    if size > _MAX_DIRECTORY:
        raise hostile(where, f"its zip directory is too large ({size} bytes)")
    if begin + size != record:
        raise damaged(where, "its zip directory isn't where its end record says")
    return begin


def _check_places(file: SourceFile, members: list[zipfile.ZipInfo], directory: int) -> None:
    """Refuse an archive whose members don't lie one after the other up to its directory.

    The header before each member says where its numbers begin. PyTorch doesn't check it, and from
    a damaged header returns other bytes of the file as the weights.
    """
    members = sorted(members, key=lambda member: member.header_offset)
    ends = [member.header_offset for member in members[1:]] + [directory]
    for member, end in zip(members, ends, strict=True):
        header = file.read(member.header_offset, min(member.header_offset + 30, file.size))
        name, extra = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:], "little")
        last = member.header_offset + 30 + name + extra + member.file_size
        after = bytes(file.read(last, end)) if 0 <= end - last <= 24 else b"too far"
        # If this flag is set, the member's sizes follow its data, after a signature.
        expected = (16, 24) if member.flag_bits & 8 else (0,)
        if len(after) not in expected or after[:4] != b"PK\x07\x08"[: len(after)]:
            raise damaged(
                shown(file.path),
                f"member {shown(member.filename)} doesn't end where the next begins",
            )
