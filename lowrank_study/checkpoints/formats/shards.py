"""Check that the shards of a model are complete and agree with their index.

A large model is saved as `model-00001-of-00002.safetensors`, ... with an index that maps each
tensor to its shard. The index is only believed where the shards agree with it.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from lowrank_study.checkpoints.formats.json_text import read_json
from lowrank_study.checkpoints.formats.source_file import damaged, hostile, resolve_inside, shown
from lowrank_study.checkpoints.formats.tensors import TensorInfo
from lowrank_study.errors import InputError

_SHARD = re.compile(r"(.{0,200})-(\d{5})-of-(\d{5})(\.\w{1,20})")
_MAX_SHARDS = 5000
_SAME_REVISION = "download index and shards of the same revision"


def index_files(index: Path, *, root: Path) -> tuple[list[Path], dict[str, str]]:
    """Return the shards of an index and its map from tensor to shard name."""
    weight_map = read_json(index, root=root).get("weight_map")
    where = shown(index)
    if not isinstance(weight_map, dict) or not weight_map:
        raise damaged(where, "has no weight_map")
    shards: dict[str, Path] = {}
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or shard in ("", ".", "..") or re.search(r"[/\\\0]", shard):
            raise hostile(
                where,
                f"puts tensor {shown(tensor)} into {shown(shard)}, which isn't a file of its own "
                "folder",
            )
        if shard not in shards:
            path = index.parent / shard
            if not os.path.lexists(path):
                raise _missing(where, shard)
            resolve_inside(path, root)
            shards[shard] = path
            if len(shards) > _MAX_SHARDS:
                raise hostile(where, f"more than {_MAX_SHARDS} shards")
    return list(shards.values()), weight_map


def numbered_shards(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Return shards without an index, sorted, after a check that they are one numbered set."""
    where = shown(folder)
    matches = [_SHARD.fullmatch(path.name) for path in paths]
    sets = {(match[1], match[3], match[4]) if match else None for match in matches}
    if len(sets) != 1 or None in sets:
        names = ", ".join(shown(path.name, 60) for path in paths[:6])
        raise InputError(
            f"{where}: {len(paths)} weight files that aren't one numbered set ({names}); "
            "give the path of the one to read"
        )
    ((stem, total, suffix),) = (key for key in sets if key is not None)
    if int(total) > _MAX_SHARDS:
        raise InputError(f"{where}: says it has {total} shards; give the file to read")
    present = {path.name for path in paths}
    for number in range(1, int(total) + 1):
        name = f"{stem}-{number:05d}-of-{total}{suffix}"
        if name not in present:
            raise _missing(where, name)
    if len(present) != int(total):
        raise InputError(
            f"{where}: has {len(present)} shards, but their names say {int(total)}; "
            "remove those of another model"
        )
    return sorted(paths)


def refuse_lone_shard(path: Path) -> None:
    """Refuse one shard of several, because most of the model would silently be missing."""
    match = _SHARD.fullmatch(path.name)
    if match and int(match[3]) > 1:
        raise InputError(
            f"{shown(path)}: is shard {int(match[2])} of {int(match[3])}; "
            "download all of them and give their folder"
        )


def check_shards(tensors: Sequence[TensorInfo], weight_map: Mapping[str, str], where: str) -> None:
    """Check that every tensor is in one shard only, and in the one that the index names.

    Without an index, `weight_map` is empty.
    """
    seen: dict[str, TensorInfo] = {}
    for tensor in tensors:
        name, shard = tensor.name, tensor.file.path.name
        if name in seen:
            raise InputError(
                f"{where}: tensor {shown(name)} is in both {shown(seen[name].file.path.name)} and "
                f"{shown(shard)}; remove the shard that doesn't belong to this model"
            )
        seen[name] = tensor
        indexed = weight_map.get(name)
        if weight_map and indexed != shard:
            says = "doesn't list it" if indexed is None else f"says {shown(indexed)}"
            raise InputError(
                f"{where}: tensor {shown(name)} is in {shown(shard)}, but the index {says}; "
                + _SAME_REVISION
            )
    for name, shard in weight_map.items():
        if name not in seen:
            raise InputError(
                f"{where}: the index puts tensor {shown(name)} into {shown(shard)}, "
                f"which doesn't have it; {_SAME_REVISION}"
            )


def _missing(where: str, shard: str) -> InputError:
    return InputError(f"{where}: shard {shown(shard)} is missing; download it into the folder")
