"""All tensors of a model on disk in any format, with one in memory at a time.

    with open_weights("model") as weights:
        for name in weights.names():
            weights.read(name)           # float32 or float64, exactly what the file says

Names are those of the unwrapped model (see `names`). Shapes are in the file's own orientation
(see `matrices` for (out, in) matrices). No code in a checkpoint is executed or imported.
"""

import math
import os
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from lowrank_study.checkpoints.formats import (
    Array,
    Closing,
    SourceFile,
    TensorInfo,
    damaged,
    read_json,
    shown,
)
from lowrank_study.checkpoints.formats.folder import find_weights, modules_beside, unread_flags
from lowrank_study.checkpoints.formats.quantized import (
    find_scales,
    refuse_packed,
    scale_factors,
    skip_reasons,
)
from lowrank_study.checkpoints.formats.shards import check_shards, index_files, refuse_lone_shard
from lowrank_study.checkpoints.formats.source_file import close_all, resolve_inside
from lowrank_study.checkpoints.formats.stored import Stored, read_plain_rows
from lowrank_study.checkpoints.formats.table import format_of
from lowrank_study.checkpoints.formats.tensors import INTEGERS, ITEM_BYTES, decode
from lowrank_study.checkpoints.names import strip_wrappers
from lowrank_study.errors import InputError


class Weights(Closing):
    """A read-only collection of named tensors; a context manager that closes its files."""

    def __init__(
        self, path: Path, files: Sequence[SourceFile], stored: Stored, config: Mapping[str, Any]
    ) -> None:
        where = shown(path)
        self.path = path
        self.files = tuple(files)
        """The model's files, each with `.path`, `.size` and `.sha256`."""
        self.config = config
        """The model's config.json; empty without one."""
        self.metadata = stored.metadata
        """A safetensors file's own metadata, or GGUF's settings: free text, not checked."""
        self._read_rows = stored.read_rows
        self._raw = {tensor.name: tensor for tensor in stored.tensors}
        refuse_packed(self._raw, config, where)
        self._scales = find_scales(self._raw, config, where)
        reasons = skip_reasons(self._raw, self._scales, where)
        stripped = strip_wrappers(self._raw)
        self._tensors = {name: self._raw[raw] for name, raw in stripped.items()}
        self.skipped = {name: reasons[raw] for name, raw in stripped.items() if raw in reasons}
        """Tensors that hold no weights (empty, integers, scales), with the reason."""
        self.beside: dict[str, int] = {}
        """Unread folders of modules beside the model, and how many weights each has."""
        self.flags = (*stored.flags, *self._dtype_flags())
        """Remarks for the report, one sentence each."""

    def _dtype_flags(self) -> list[str]:
        flags = []
        dtypes = sorted({self._tensors[name].dtype for name in self.names()})
        if len(dtypes) > 1:
            flags.append(f"mixed storage dtypes: {', '.join(dtypes)}")
        if self._scales:
            flags.append("float8 weights dequantised with their scales")
        return flags

    def names(self) -> list[str]:
        """Return the names of all tensors with weights, in file order."""
        return [name for name in self._tensors if name not in self.skipped]

    def __contains__(self, name: object) -> bool:
        return name in self._tensors and name not in self.skipped

    def __len__(self) -> int:
        return len(self._tensors) - len(self.skipped)

    def info(self, name: str) -> TensorInfo:
        """Return the place and type of a tensor."""
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
        """Return the shape of any tensor in the file, even one without weights."""
        return self._tensors[name].shape

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape in the file's own orientation."""
        return self.info(name).shape

    def dtype(self, name: str) -> str:
        """Return the storage dtype such as `bfloat16`, or GGUF's quantisation such as `Q4_1`."""
        return self.info(name).dtype

    def read(self, name: str) -> Array:
        """Return one tensor exactly, as float32 (float64 if stored so, or scaled float8)."""
        shape = self.info(name).shape
        return self.read_rows(name, 0, shape[0] if shape else 1)

    def read_number(self, name: str) -> float:
        """Return the only number of a tensor, which may be stored as an integer."""
        info = self._tensors[name]
        number = math.nan
        if prod(info.shape) == 1 and info.dtype in INTEGERS:
            data = info.file.read(info.start, info.stop)
            number = float(int.from_bytes(data, "little", signed=info.dtype[0] == "i"))
        elif prod(info.shape) == 1:
            number = float(self._read_rows(info, 0, 1).reshape(()))
        if not math.isfinite(number):
            what = f"{shown(name)} is not one number (shape {list(info.shape)}, {info.dtype})"
            raise damaged(shown(self.path), what)
        return number

    def read_rows(self, name: str, first: int, last: int) -> Array:
        """Return the rows `first:last` of one tensor without reading the others."""
        info = self.info(name)
        rows = info.shape[0] if info.shape else 1
        if not 0 <= first <= last <= rows:
            raise ValueError(f"rows {first}:{last} of {rows} in {name!r}")
        values = self._read_rows(info, first, last)
        scale = self._scales.get(info.name)
        if scale is None:
            return values
        with np.errstate(invalid="ignore"):  # callers check for NaN and Inf
            return values * scale_factors(values.shape, first, scale, self._read_raw)

    def is_scaled(self, name: str) -> bool:
        """Whether the tensor is float8 with scales beside it."""
        return self.info(name).name in self._scales

    def read_scales(self, name: str) -> Array:
        """Return the scale of each number of a scaled tensor, in the tensor's shape."""
        info = self.info(name)
        return scale_factors(info.shape, 0, self._scales[info.name], self._read_raw)

    def reads_parts(self, name: str) -> bool:
        """Whether `read_part` can read a part of this tensor without the rest."""
        return self._read_rows is read_plain_rows and not self.is_scaled(name)

    def read_part(
        self, name: str, *, width: int, rows: tuple[int, int], columns: tuple[int, int]
    ) -> Array:
        """Return some rows and columns (first, one past the last) exactly, and read no others.

        The tensor is seen as a row-major matrix of `width` columns; `reads_parts` must be true.
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
        formats = {format_of(file, allow_pickle=allow_pickle) for file in files}
        if len(formats) > 1:
            names = ", ".join(sorted(each.name for each in formats))
            raise InputError(
                f"{shown(path)}: has shards of different formats ({names}); give one file"
            )
        stored = formats.pop().read(files)
        check_shards(stored.tensors, weight_map, shown(path))
        weights = Weights(path, files, stored, config or stored.config)
        if os.path.isdir(path):
            weights.beside.update(modules_beside(path))
            weights.flags += tuple(unread_flags(path, paths))
        return weights
    except BaseException:
        close_all(files)
        raise


def _locate(path: Path) -> tuple[Path, list[Path], dict[str, str]]:
    """Return the folder, the weight files in it, and the index's map; empty without an index."""
    if os.path.isdir(path):  # Path.is_dir fails on some odd names
        return path, *find_weights(path)
    folder = path.parent
    resolve_inside(path, folder)
    if path.name.endswith(".index.json"):
        return folder, *index_files(path, root=folder)
    refuse_lone_shard(path)
    return folder, [path], {}
