"""Find the weights in a folder, and everything beside them that isn't read."""

import os
import re
from collections.abc import Sequence
from math import prod
from pathlib import Path

from lowrank_study.checkpoints.formats.safetensors_file import read_safetensors
from lowrank_study.checkpoints.formats.shards import index_files, numbered_shards, refuse_lone_shard
from lowrank_study.checkpoints.formats.source_file import SourceFile, shown
from lowrank_study.checkpoints.formats.table import FORMATS
from lowrank_study.errors import InputError

_NOT_WEIGHTS = ("adapter_model.", "optimizer.", "scheduler.", "rng_state", "training_args.")
_COPIES = ("model", "pytorch_model", "consolidated", "tf_model", "flax_model")
"""Beginnings of the names of the model itself, in any format."""

_MODULE = re.compile(r"\d{1,2}_\w{1,60}")
CONFIG_NAME = "adapter_config.json"
"""The file with the settings of a PEFT or MLX adapter."""


def find_weights(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """Return the weight files of a folder, and the index's map; empty without an index."""
    paths = _without_second_copy(
        [path for path in listed(folder) if not path.name.startswith(_NOT_WEIGHTS)]
    )
    for each in FORMATS:
        ends = tuple(f"{suffix}.index.json" for suffix in each.suffixes)
        indices = [path for path in paths if path.name.endswith(ends)]
        files = [path for path in paths if path.suffix in each.suffixes]
        if indices:
            return _indexed(folder, indices, files)
        if len(files) > 1:
            return numbered_shards(files, folder), {}
        if files:
            refuse_lone_shard(files[0])
            return files, {}
    refuse_several_adapters(folder)
    if os.path.lexists(folder / CONFIG_NAME):
        raise InputError(
            f"{shown(folder)}: is an adapter, not a whole model; give adapter=PATH base=PATH"
        )
    found = ", ".join(shown(path.name, 40) for path in listed(folder)[:8]) or "nothing"
    raise InputError(
        f"{shown(folder)}: no .safetensors, .gguf, .bin or .pt weights in it (found {found}); "
        "give a folder or file that holds weights"
    )


def _indexed(
    folder: Path, indices: list[Path], files: list[Path]
) -> tuple[list[Path], dict[str, str]]:
    """Return the files of the only index; refuse a weight file that it doesn't list."""
    if len(indices) > 1:
        raise InputError(f"{shown(folder)}: holds {len(indices)} index files; give the path of one")
    shards, weight_map = index_files(indices[0], root=folder)
    extra = [path.name for path in files if path not in shards]
    if extra:
        index = shown(indices[0].name)
        raise InputError(
            f"{shown(folder)}: {shown(extra[0])} isn't in {index}; "
            f"give the path of {index} or of the one file to read"
        )
    return shards, weight_map


def listed(folder: Path) -> list[Path]:
    """Return the contents of a folder, sorted by name."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{shown(folder)}: can't be listed ({error.strerror})") from None


def _without_second_copy(paths: list[Path]) -> list[Path]:
    """Leave out `consolidated*`, the same model in Mistral's layout, if there are other files."""
    others = [path for path in paths if not path.name.startswith("consolidated")]
    return others if any(path.suffix == ".safetensors" for path in others) else paths


def refuse_several_adapters(folder: Path) -> None:
    """Refuse a folder with several adapters in subfolders, and list them."""
    adapters = [] if os.path.lexists(folder / CONFIG_NAME) else adapters_inside(folder)
    if adapters:
        names = ", ".join(shown(name, 60) for name in adapters[:8])
        raise InputError(
            f"{shown(folder)}: holds {len(adapters)} adapters in separate folders ({names}); "
            f"give one of them, such as {shown(folder / adapters[0])}"
        )


def adapters_inside(folder: Path) -> list[str]:
    """Return the subfolders that hold an adapter; PEFT saves all but the first there."""
    try:
        inside = listed(folder)
    except (InputError, ValueError):
        return []
    return [path.name for path in inside if os.path.lexists(path / CONFIG_NAME)]


def modules_beside(folder: Path) -> dict[str, int]:
    """Return the modules that sentence-transformers stores beside a model, and their sizes.

    Each is a folder like `2_Dense`. For a pickle, the size is estimated at four bytes per number.
    """
    found: dict[str, int] = {}
    for inside in filter(lambda path: _MODULE.fullmatch(path.name), listed(folder)):
        stored, pickled = inside / "model.safetensors", inside / "pytorch_model.bin"
        if os.path.lexists(stored):
            with SourceFile.open(stored, root=folder) as file:
                tensors = read_safetensors([file]).tensors
                found[inside.name] = sum(prod(tensor.shape) for tensor in tensors)
        elif os.path.lexists(pickled):
            with SourceFile.open(pickled, root=folder) as file:
                found[inside.name] = file.size // 4
    return found


def unread_flags(folder: Path, read: Sequence[Path]) -> list[str]:
    """Return a remark on weight files that aren't read and aren't copies of the model.

    LLaVA's full weights are an example (`non_lora_trainables.bin`, `mm_projector.bin`).
    """
    suffixes = tuple(suffix for each in FORMATS for suffix in each.suffixes)
    known = {path.name for path in read}
    found = [
        shown(path.name, 60)
        for path in listed(folder)
        if path.name.endswith(suffixes)
        and path.name not in known
        and not path.name.startswith((*_NOT_WEIGHTS, *_COPIES))
    ]
    return [f"weight files in the same folder aren't read: {', '.join(found[:4])}"] if found else []
