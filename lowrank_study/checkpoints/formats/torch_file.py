"""PyTorch's own files, which are pickles: only ever opened on explicit request.

A pickle is a program. `torch.load(weights_only=True)` runs a restricted one, which has had
holes (CVE-2025-32434), so without `allow_pickle=True` such a file is refused by its first
bytes, whatever its name says.

    load_torch(file)     # {"encoder.weight": tensor(...), ...}
"""

import pickle
import zipfile
from typing import TYPE_CHECKING, Any

from lowrank_study.checkpoints.formats.source_file import SourceFile, shown
from lowrank_study.errors import InputError

if TYPE_CHECKING:
    import torch

_NESTED = ("state_dict", "model_state_dict", "model", "module")
"""Keys under which training scripts keep the weights."""

_TAIL = 2**16 + 22
_MAX_DIRECTORY = 2 * 2**20

HOW_TO_CONVERT = (
    "convert it where you trust it, with `torch.load(path, weights_only=True)` and "
    "`safetensors.torch.save_file(tensors, path)`, or open it with allow_pickle"
)


def refuse_pickle(file: SourceFile) -> None:
    """Refuse a pickle, and say how to convert it."""
    raise InputError(
        f"{shown(file.path)}: is a PyTorch pickle, which can run code when it is loaded; "
        + HOW_TO_CONVERT
    )


def _check_zip(file: SourceFile) -> None:
    """Refuse an archive whose members are compressed or many: nothing is inflated here."""
    where = shown(file.path)
    tail = file.read(max(0, file.size - _TAIL), file.size)
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) - end < 22:
        raise InputError(f"{where}: its zip directory is missing; it is truncated: get it again")
    directory = int.from_bytes(tail[end + 12 : end + 16], "little")
    begin = int.from_bytes(tail[end + 16 : end + 20], "little")
    record = file.size - len(tail) + end
    if tail[end - 20 : end - 16] == b"PK\x06\x07":  # zip64 puts the true sizes 76 bytes before
        directory = int.from_bytes(tail[end - 36 : end - 28], "little")
        begin = int.from_bytes(tail[end - 28 : end - 20], "little")
        record -= 76
        if tail[end - 76 : end - 72] != b"PK\x06\x06":
            raise InputError(f"{where}: damaged zip directory; get it again from its source")
    if directory > _MAX_DIRECTORY:
        raise InputError(f"{where}: its zip directory is too large; get it from a trusted source")
    if begin + directory != record:
        raise InputError(f"{where}: damaged zip directory; get it again from its source")
    try:
        with open(file.path, "rb") as opened, zipfile.ZipFile(opened) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, OverflowError) as error:
        raise InputError(f"{where}: damaged zip archive ({shown(error)}); get it again") from None
    total = 0
    for member in members:
        total += member.file_size
        if member.compress_type != zipfile.ZIP_STORED or total > file.size:
            raise InputError(
                f"{where}: member {shown(member.filename)} is compressed or larger than the file, "
                "which PyTorch never writes; it may be a zip bomb: get it from a trusted source"
            )
    _check_places(file, members, begin)


def _check_places(file: SourceFile, members: list[zipfile.ZipInfo], directory: int) -> None:
    """Refuse an archive whose members don't lie one behind the other up to its directory.

    The header before each member says where its numbers begin. PyTorch takes it unchecked, and
    from a damaged one returns other bytes of the file as the weights.
    """
    members = sorted(members, key=lambda member: member.header_offset)
    ends = [member.header_offset for member in members[1:]] + [directory]
    for member, end in zip(members, ends, strict=True):
        header = file.read(member.header_offset, min(member.header_offset + 30, file.size))
        name, extra = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:], "little")
        last = member.header_offset + 30 + name + extra + member.file_size
        behind = bytes(file.read(last, end)) if 0 <= end - last <= 24 else b"too far"
        # The sizes follow the data where a flag says so, under a signature of their own.
        sizes_follow = bool(member.flag_bits & 8)
        expected = (16, 24) if sizes_follow else (0,)
        if len(behind) not in expected or behind[:4] != b"PK\x07\x08"[: len(behind)]:
            raise InputError(
                f"{shown(file.path)}: member {shown(member.filename)} doesn't end where the next "
                "begins; its header is damaged: get it again"
            )


def load_torch(file: SourceFile) -> "dict[str, torch.Tensor]":
    """Return the tensors of a .bin or .pt file, through `weights_only`.

    Raises:
        InputError: it isn't a mapping of names to plain dense tensors, or holds more than that.
    """
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
    except Exception as error:  # the loader raises whatever a damaged pickle leads it to
        raise InputError(f"{where}: can't be loaded ({shown(error, 100)}); get it again") from None
    file.check_unchanged()
    nested = [
        key for key in _NESTED if isinstance(loaded, dict) and isinstance(loaded.get(key), dict)
    ]
    if len(nested) == 1:
        loaded = loaded[nested[0]]
    if not isinstance(loaded, dict) or not loaded:
        raise InputError(f"{where}: holds a {type(loaded).__name__}, not named tensors")
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
