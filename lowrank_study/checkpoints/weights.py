"""All tensors of a model on disk, whatever its format, one in memory at a time.

    with open_weights("model") as weights:
        for name in weights.names():
            weights.read(name)           # float32 or float64, exactly what the file says

Names are those of the unwrapped model (see `names`); shapes are the file's own orientation
(see `matrices` for (out, in) matrices). Nothing out of a checkpoint is executed or imported.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from lowrank_study.checkpoints.formats.detection import format_of, refuse_stand_in
from lowrank_study.checkpoints.formats.gguf_file import read_gguf, read_gguf_tensor
from lowrank_study.checkpoints.formats.quantized import (
    apply_scale,
    find_scales,
    refuse_packed,
    scale_factors,
    skip_reasons,
)
from lowrank_study.checkpoints.formats.safetensors_file import read_headers
from lowrank_study.checkpoints.formats.shards import (
    check_shards,
    find_files,
    index_files,
    modules_beside,
    refuse_lone_shard,
    unread_flags,
)
from lowrank_study.checkpoints.formats.source_file import (
    Closing,
    SourceFile,
    close_all,
    read_json,
    resolve_inside,
    shown,
)
from lowrank_study.checkpoints.formats.tensors import FLOATS, ITEM_BYTES, Array, TensorInfo, decode
from lowrank_study.checkpoints.formats.torch_file import load_torch, refuse_pickle
from lowrank_study.checkpoints.names import strip_wrappers
from lowrank_study.errors import InputError

_INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")

RowReader = Callable[[TensorInfo, int, int], Array]
"""Reads the rows `first:last` (of axis 0) of one tensor exactly."""


class Weights(Closing):
    """A read-only collection of named tensors; a context manager that closes its files."""

    def __init__(
        self,
        path: Path,
        *,
        files: Sequence[SourceFile],
        tensors: Sequence[TensorInfo],
        config: Mapping[str, Any],
        metadata: Mapping[str, Any],
        read_rows: RowReader,
        flags: Sequence[str],
    ) -> None:
        where = shown(path)
        self.path = path
        """What was opened."""
        self.files = tuple(files)
        """The files it consists of, each with `.path`, `.size` and `.sha256`."""
        self.config = config
        """The model's config.json; empty where there is none."""
        self.metadata = metadata
        """A safetensors file's own metadata, or GGUF's settings: free text, not checked."""
        self._read_rows = read_rows
        self._raw = {tensor.name: tensor for tensor in tensors}
        refuse_packed(self._raw, config, where)
        self._scales = find_scales(self._raw, config, where)
        reasons = skip_reasons(self._raw, self._scales, where)
        stripped = strip_wrappers(self._raw)
        self._tensors = {name: self._raw[raw] for name, raw in stripped.items()}
        self.skipped = {name: reasons[raw] for name, raw in stripped.items() if raw in reasons}
        """Tensors that hold no weights (empty, integers, scales), with the reason."""
        self.beside: dict[str, int] = {}
        """Unread folders of modules beside the model, and how many weights each has."""
        self.flags = (*flags, *self._dtype_flags())
        """What a report has to say of these weights, one sentence each."""

    def _dtype_flags(self) -> list[str]:
        flags = []
        dtypes = sorted({self._tensors[name].dtype for name in self.names()})
        if len(dtypes) > 1:
            flags.append(f"mixed storage dtypes: {', '.join(dtypes)}")
        if self._scales:
            flags.append("float8 weights dequantised with their scales")
        return flags

    def names(self) -> list[str]:
        """Names of all tensors that can be read, in file order."""
        return [name for name in self._tensors if name not in self.skipped]

    def __contains__(self, name: object) -> bool:
        return name in self._tensors and name not in self.skipped

    def __len__(self) -> int:
        return len(self._tensors) - len(self.skipped)

    def info(self, name: str) -> TensorInfo:
        """Where the tensor lies, and as what.

        Raises:
            InputError: there is no such tensor, or it holds no weights.
        """
        if name in self.skipped:
            raise InputError(
                f"{shown(self.path)}: tensor {shown(name)} can't be read as weights "
                f"({self.skipped[name]}); leave it out"
            )
        if name not in self._tensors:
            some = ", ".join(shown(known, 60) for known in self.names()[:5])
            raise InputError(
                f"{shown(self.path)}: no tensor {shown(name)}; it has {len(self)}, such as {some}"
            )
        return self._tensors[name]

    def stored_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of any tensor in the file, also of one without weights."""
        return self._tensors[name].shape

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape in the file's own orientation."""
        return self.info(name).shape

    def dtype(self, name: str) -> str:
        """Storage dtype, such as `bfloat16`, or GGUF's quantisation, such as `Q4_1`."""
        return self.info(name).dtype

    def read(self, name: str) -> Array:
        """Return one tensor exactly, as float32 (float64 if stored so, or scaled float8).

        Raises:
            InputError: no such tensor, or its file can't be read or has changed.
        """
        shape = self.info(name).shape
        return self.read_rows(name, 0, shape[0] if shape else 1)

    def read_number(self, name: str) -> float:
        """Return the only number of a tensor, which may be stored as an integer.

        Raises:
            InputError: it does not hold exactly one number, or the number isn't finite.
        """
        info = self._tensors[name]
        number = math.nan
        if prod(info.shape) == 1 and info.dtype in _INTEGERS:
            data = info.file.read(info.start, info.stop)
            number = float(int.from_bytes(data, "little", signed=info.dtype[0] == "i"))
        elif prod(info.shape) == 1:
            number = float(self._read_rows(info, 0, 1).reshape(()))
        if not math.isfinite(number):
            raise InputError(
                f"{shown(self.path)}: {shown(name)} is not one number (shape {list(info.shape)}, "
                f"{info.dtype}); get the file again from its source"
            )
        return number

    def read_rows(self, name: str, first: int, last: int) -> Array:
        """Return the rows `first:last` of one tensor without reading the others."""
        info = self.info(name)
        rows = info.shape[0] if info.shape else 1
        if not 0 <= first <= last <= rows:
            raise ValueError(f"rows {first}:{last} of {rows} in {name!r}")
        values = self._read_rows(info, first, last)
        scale = self._scales.get(info.name)
        return values if scale is None else apply_scale(values, first, scale, self._read_raw)

    def reads_parts(self, name: str) -> bool:
        """Whether `read_part` can give a part of this tensor without reading the rest."""
        return self._read_rows is _read_plain_rows and not self.is_scaled(name)

    def is_scaled(self, name: str) -> bool:
        """Whether the tensor is float8 with scales beside it."""
        return self.info(name).name in self._scales

    def read_scales(self, name: str) -> Array:
        """Return the scale of each number of a scaled tensor, in the tensor's shape."""
        info = self.info(name)
        return scale_factors(info.shape, 0, self._scales[info.name], self._read_raw)

    def read_part(
        self, name: str, *, width: int, rows: tuple[int, int], columns: tuple[int, int]
    ) -> Array:
        """Return some rows and columns of a tensor, exactly, and read nothing else of it.

        Args:
            name: a tensor of which `reads_parts` is true.
            width: the tensor is seen as a matrix of this many columns, row-major.
            rows: first row and one past the last.
            columns: first column and one past the last.
        """
        assert self.reads_parts(name)
        info = self.info(name)
        item = ITEM_BYTES[info.dtype]
        (top, bottom), (left, right) = rows, columns
        data = info.file.read_pieces(
            info.start + (top * width + left) * item,
            (right - left) * item,
            width * item,
            bottom - top,
        )
        return decode(data, info.dtype, (bottom - top, right - left))

    def _read_raw(self, name: str) -> Array:
        info = self._raw[name]
        return self._read_rows(info, 0, info.shape[0] if info.shape else 1)

    def close(self) -> None:
        """Close all files; closing twice is harmless."""
        close_all(self.files)


def open_weights(path: str | Path, *, allow_pickle: bool = False) -> Weights:
    """Open a model: a folder in Hugging Face's layout, or one file.

    Args:
        path: a folder, a .safetensors, .gguf or (with `allow_pickle`) .bin or .pt file, or the
            .index.json of shards. Only files in that folder are ever read.
        allow_pickle: also open PyTorch's own files, through `torch.load(weights_only=True)`.
            safetensors needs no such trust.

    Raises:
        InputError: it can't be read exactly; the message names file, tensor and remedy.
    """
    path = Path(path)
    folder, paths, weight_map = _locate(path)
    config_path = folder / "config.json"
    config = read_json(config_path, root=folder) if os.path.lexists(config_path) else {}
    files: list[SourceFile] = []
    try:
        for each in paths:
            files.append(SourceFile.open(each, root=folder))
            refuse_stand_in(files[-1])
        kinds = {format_of(file) for file in files}
        if len(kinds) > 1:
            raise InputError(f"{shown(path)}: shards of different formats ({', '.join(kinds)})")
        match kinds.pop():
            case "gguf":
                weights = _open_gguf(path, files, config)
            case "pickle":
                if not allow_pickle:
                    refuse_pickle(files[0])
                weights = _open_torch(path, files, config, weight_map)
            case _:
                weights = _open_safetensors(path, files, config, weight_map)
        if os.path.isdir(path):
            weights.beside.update(modules_beside(path))
            weights.flags += tuple(unread_flags(path, paths))
        return weights
    except BaseException:
        close_all(files)
        raise


def _locate(path: Path) -> tuple[Path, list[Path], dict[str, str] | None]:
    """Return the folder, the weight files in it and, if there is an index, its map."""
    if os.path.isdir(path):  # unlike Path's, it takes any name
        return path, *find_files(path)
    folder = path.parent
    resolve_inside(path, folder)
    if path.name.endswith(".index.json"):
        return folder, *index_files(path, root=folder)
    refuse_lone_shard(path)
    return folder, [path], None


def cut_rows(info: TensorInfo, first: int, last: int) -> TensorInfo:
    """Describe the rows `first:last` of a tensor as a tensor of their own."""
    if not info.shape or (first, last) == (0, info.shape[0]):
        return info
    row = (info.stop - info.start) // info.shape[0]
    return replace(
        info,
        shape=(last - first, *info.shape[1:]),
        start=info.start + first * row,
        stop=info.start + last * row,
    )


def _read_plain_rows(info: TensorInfo, first: int, last: int) -> Array:
    part = cut_rows(info, first, last)
    return decode(part.file.read(part.start, part.stop), part.dtype, part.shape)


def _read_gguf_rows(info: TensorInfo, first: int, last: int) -> Array:
    if len(info.shape) < 2:  # a block of quantised numbers may span several "rows"
        return read_gguf_tensor(info)[first:last] if info.shape else read_gguf_tensor(info)
    return read_gguf_tensor(cut_rows(info, first, last))


def _open_safetensors(
    path: Path,
    files: Sequence[SourceFile],
    config: Mapping[str, Any],
    weight_map: Mapping[str, str] | None,
) -> Weights:
    tensors, metadata = read_headers(files)
    check_shards(tensors, weight_map, shown(path))
    return Weights(
        path,
        files=files,
        tensors=tensors,
        config=config,
        metadata=metadata,
        read_rows=_read_plain_rows,
        flags=(),
    )


def _open_gguf(path: Path, files: Sequence[SourceFile], config: Mapping[str, Any]) -> Weights:
    if len(files) != 1:
        raise InputError(
            f"{shown(path)}: {len(files)} GGUF parts; merge them with "
            "llama.cpp's `llama-gguf-split --merge` first"
        )
    tensors, settings = read_gguf(files[0])
    quantised = sorted({tensor.dtype for tensor in tensors} - set(FLOATS))
    flags = [f"GGUF dequantised from {', '.join(quantised)}: not the original weights"]
    named = {"gguf_architecture": settings.get("general.architecture")}
    return Weights(
        path,
        files=files,
        tensors=tensors,
        config=config or named,
        metadata=settings,
        read_rows=_read_gguf_rows,
        flags=flags if quantised else ["read from GGUF"],
    )


def _open_torch(
    path: Path,
    files: Sequence[SourceFile],
    config: Mapping[str, Any],
    weight_map: Mapping[str, str] | None,
) -> Weights:
    loaded: dict[str, Any] = {}
    tensors: list[TensorInfo] = []
    for file in files:
        content = load_torch(file)
        loaded.update(content)
        tensors += [
            TensorInfo(
                name=name,
                dtype=str(tensor.dtype).removeprefix("torch."),
                shape=tuple(tensor.shape),
                start=0,
                stop=0,
                file=file,
            )
            for name, tensor in content.items()
        ]
    check_shards(tensors, weight_map, shown(path))

    def read_rows(info: TensorInfo, first: int, last: int) -> Array:
        info.file.check_unchanged()
        tensor = loaded[info.name].detach()
        part = tensor[first:last] if info.shape else tensor
        wide = part.double() if info.dtype == "float64" else part.float()
        return np.array(wide.contiguous().numpy())

    return Weights(
        path,
        files=files,
        tensors=tensors,
        config=config,
        metadata={},
        read_rows=read_rows,
        flags=["read from a PyTorch pickle with weights_only"],
    )
