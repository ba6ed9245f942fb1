"""Which files a checkpoint folder consists of, and whether they fit together.

A large model is saved as `model-00001-of-00002.safetensors`, ... with an index that maps each
tensor to its shard. The index is only believed where the shards agree with it.

    find_files(Path("model"))     # ([Path("model/model.safetensors")], None)
"""

import os
import re
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

from lowrank_study.checkpoints.formats.safetensors_file import read_headers
from lowrank_study.checkpoints.formats.source_file import (
    SourceFile,
    read_json,
    resolve_inside,
    shown,
)
from lowrank_study.checkpoints.formats.tensors import TensorInfo
from lowrank_study.errors import InputError

_SHARD = re.compile(r"(.{0,200})-(\d{5})-of-(\d{5})(\.\w{1,20})")
_NOT_WEIGHTS = ("adapter_model.", "optimizer.", "scheduler.", "rng_state", "training_args.")
_COPIES = ("model", "pytorch_model", "consolidated", "tf_model", "flax_model")
"""How the names of the model itself begin, in any format."""
_FORMATS = ((".safetensors",), (".gguf",), (".bin", ".pt", ".pth"))
"""Suffixes of weight files, the preferred format first."""
_MAX_SHARDS = 5000
_MODULE = re.compile(r"\d{1,2}_\w{1,60}")


def index_files(index: Path, *, root: Path) -> tuple[list[Path], dict[str, str]]:
    """Return the shards of an index and its map from tensor to shard name.

    Raises:
        InputError: the index names a file outside its folder, or one that is missing.
    """
    weight_map = read_json(index, root=root).get("weight_map")
    where = shown(index)
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{where}: has no weight_map; get it again from its source")
    shards: dict[str, Path] = {}
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or shard in ("", ".", "..") or re.search(r"[/\\\0]", shard):
            raise InputError(
                f"{where}: puts tensor {shown(tensor)} into {shown(shard)}, which isn't a file of "
                "its own folder; the index is damaged or hostile: get it from a source you trust"
            )
        if shard not in shards:
            path = index.parent / shard
            if not os.path.lexists(path):
                raise InputError(
                    f"{where}: shard {shown(shard)} is missing; download it into "
                    f"{shown(index.parent)}"
                )
            resolve_inside(path, root)
            shards[shard] = path
            if len(shards) > _MAX_SHARDS:
                raise InputError(f"{where}: more than {_MAX_SHARDS} shards; get it again")
    return list(shards.values()), weight_map


def _numbered(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Check that shards found without an index are all of one numbered set."""
    matches = [_SHARD.fullmatch(path.name) for path in paths]
    sets = {(match[1], match[3], match[4]) if match else None for match in matches}
    if len(sets) != 1 or None in sets:
        names = ", ".join(shown(path.name, 60) for path in paths[:6])
        raise InputError(
            f"{shown(folder)}: {len(paths)} weight files that aren't one numbered set ({names}); "
            "give the path of the one to read"
        )
    ((stem, total, suffix),) = (key for key in sets if key is not None)
    if int(total) > _MAX_SHARDS:
        raise InputError(f"{shown(folder)}: says it has {total} shards; give the file to read")
    present = {path.name for path in paths}
    for number in range(1, int(total) + 1):
        name = f"{stem}-{number:05d}-of-{total}{suffix}"
        if name not in present:
            raise InputError(
                f"{shown(folder)}: shard {shown(name)} is missing; download it into the folder"
            )
    if len(present) != int(total):
        raise InputError(f"{shown(folder)}: more shards than the {int(total)} their names say")
    return sorted(paths)


def find_files(folder: Path) -> tuple[list[Path], dict[str, str] | None]:
    """Return the weight files of a folder and, if there is an index, its map.

    safetensors is preferred to GGUF, and GGUF to PyTorch's pickles.

    Raises:
        InputError: no weights, a missing shard, or more than one candidate.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{shown(folder)}: can't be listed ({error.strerror})") from None
    weights = [path for path in entries if not path.name.startswith(_NOT_WEIGHTS)]
    weights = _without_second_copy(weights)
    for suffixes in _FORMATS:
        indices = [
            path
            for path in weights
            if path.name.endswith(tuple(f"{s}.index.json" for s in suffixes))
        ]
        files = [path for path in weights if path.suffix in suffixes]
        if len(indices) > 1:
            raise InputError(
                f"{shown(folder)}: holds {len(indices)} index files; give the path of one"
            )
        if indices:
            shards, weight_map = index_files(indices[0], root=folder)
            extra = [path.name for path in files if path not in shards]
            if extra:
                raise InputError(
                    f"{shown(folder)}: {shown(extra[0])} isn't in {shown(indices[0].name)}; "
                    f"give the path of {shown(indices[0].name)} or of the one file to read"
                )
            return shards, weight_map
        if len(files) > 1:
            return _numbered(files, folder), None
        if files:
            refuse_lone_shard(files[0])
            return files, None
    refuse_several_adapters(folder)
    if os.path.lexists(folder / "adapter_config.json"):
        raise InputError(
            f"{shown(folder)}: is an adapter, not a whole model; give adapter=PATH base=PATH"
        )
    found = ", ".join(shown(path.name, 40) for path in entries[:8]) or "nothing"
    raise InputError(
        f"{shown(folder)}: no .safetensors, .gguf, .bin or .pt weights in it (found {found}); "
        "give a folder or file that holds weights"
    )


def _without_second_copy(paths: list[Path]) -> list[Path]:
    """Leave out `consolidated*`, the same model in Mistral's layout, if there are other files."""
    others = [path for path in paths if not path.name.startswith("consolidated")]
    return others if any(path.suffix == ".safetensors" for path in others) else paths


def refuse_several_adapters(folder: Path) -> None:
    """Refuse a folder with several adapters in subfolders, and list them."""
    adapters = [] if os.path.lexists(folder / "adapter_config.json") else adapters_inside(folder)
    if adapters:
        named = ", ".join(shown(name, 60) for name in adapters[:8])
        raise InputError(
            f"{shown(folder)}: holds {len(adapters)} adapters in folders of their own ({named}); "
            f"give one of them, such as {shown(folder / adapters[0])}"
        )


def adapters_inside(folder: Path) -> list[str]:
    """Return the subfolders that hold an adapter; PEFT saves all but the first there."""
    if not os.path.isdir(folder):
        return []
    try:
        inside = sorted(folder.iterdir())
    except OSError:
        return []
    return [path.name for path in inside if os.path.lexists(path / "adapter_config.json")]


def modules_beside(folder: Path) -> dict[str, int]:
    """Return the modules that sentence-transformers stores beside a model, and their sizes.

    Each is a folder like `2_Dense`. For a pickle, the size is estimated at four bytes per number.
    """
    found: dict[str, int] = {}
    for inside in sorted(folder.iterdir()):
        if not _MODULE.fullmatch(inside.name):
            continue
        for name in ("model.safetensors", "pytorch_model.bin"):
            if os.path.lexists(inside / name):
                with SourceFile.open(inside / name, root=folder) as file:
                    is_pickle = name.endswith(".bin")
                    tensors = [] if is_pickle else read_headers([file])[0]
                    count = sum(prod(tensor.shape) for tensor in tensors)
                    found[inside.name] = file.size // 4 if is_pickle else count
                break
    return found


def unread_flags(folder: Path, read: Sequence[Path]) -> list[str]:
    """Say which weight files of a folder aren't read and are no copy of the model.

    LLaVA keeps what it trained in full (`non_lora_trainables.bin`, `mm_projector.bin`) so.
    """
    suffixes = tuple(suffix for group in _FORMATS for suffix in group)
    known = {path.name for path in read}
    found = [
        shown(path.name, 60)
        for path in sorted(folder.iterdir())
        if path.name.endswith(suffixes)
        and path.name not in known
        and not path.name.startswith((*_NOT_WEIGHTS, *_COPIES))
    ]
    return [f"not read, though it lies beside: {', '.join(found[:4])}"] if found else []


def refuse_lone_shard(path: Path) -> None:
    """Refuse one shard of several: most of the model would silently be missing."""
    match = _SHARD.fullmatch(path.name)
    if match and int(match[3]) > 1:
        raise InputError(
            f"{shown(path)}: is shard {int(match[2])} of {int(match[3])}; "
            "download all of them and give their folder"
        )


def check_shards(
    tensors: Sequence[TensorInfo], weight_map: Mapping[str, str] | None, where: str
) -> None:
    """Check that every tensor is in one shard only, and in the one the index says."""
    seen: dict[str, TensorInfo] = {}
    for tensor in tensors:
        name, shard = tensor.name, tensor.file.path.name
        if name in seen:
            raise InputError(
                f"{where}: tensor {shown(name)} is in both {shown(seen[name].file.path.name)} and "
                f"{shown(shard)}; remove the shard that doesn't belong to this model"
            )
        seen[name] = tensor
        if weight_map is not None and weight_map.get(name) != shard:
            said = weight_map.get(name)
            raise InputError(
                f"{where}: tensor {shown(name)} is in {shown(shard)}, the index says "
                f"{'nothing of it' if said is None else shown(said)}; download index and shards "
                "of the same revision"
            )
    for name in weight_map or ():
        if name not in seen:
            assert weight_map is not None
            raise InputError(
                f"{where}: the index puts tensor {shown(name)} into {shown(weight_map[name])}, "
                "which doesn't have it; download index and shards of the same revision"
            )
