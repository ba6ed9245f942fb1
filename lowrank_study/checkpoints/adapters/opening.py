"""Recognise the format of an adapter by its config, its first bytes and its names.

A folder of PEFT or MLX has an adapter_config.json. A file of diffusers, ComfyUI or kohya's scripts
has no config. A LoRA converted for llama.cpp is a GGUF file.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lowrank_study.checkpoints.adapters.adapter import Adapter
from lowrank_study.checkpoints.adapters.content import Reader
from lowrank_study.checkpoints.adapters.diffusion import read_diffusion
from lowrank_study.checkpoints.adapters.gguf import read_gguf_lora
from lowrank_study.checkpoints.adapters.mlx import read_mlx
from lowrank_study.checkpoints.adapters.peft import read_peft
from lowrank_study.checkpoints.adapters.saving import WEIGHTS_NAME
from lowrank_study.checkpoints.formats import (
    CONFIG_NAME,
    SourceFile,
    read_json,
    refuse_several_adapters,
    shown,
)
from lowrank_study.checkpoints.formats.folder import adapters_inside, listed, unread_flags
from lowrank_study.checkpoints.weights import open_weights
from lowrank_study.errors import InputError

_PICKLE_NAME = "adapter_model.bin"
_MLX_NAME = "adapters.safetensors"
_FORMATS = (
    "a folder saved by PEFT or MLX, a .safetensors file of diffusers, ComfyUI or kohya's scripts, "
    "or a LoRA in GGUF"
)

_Recognised = tuple[Path, Mapping[str, Any], Reader]
"""The file with the tensors, its config, and the reader for both."""


def open_adapter(path: str | Path, *, allow_pickle: bool = False) -> Adapter:
    """Open an adapter of any supported format.

    Args:
        path: a folder with adapter_config.json (PEFT, MLX), or one file (diffusers, ComfyUI,
            kohya's scripts, GGUF).
        allow_pickle: also open `adapter_model.bin`, through `torch.load(weights_only=True)`.

    Raises:
        InputError: it can't be read exactly; the message gives file, tensor and remedy.
    """
    path = Path(path)
    weights_path, config, reader = _recognised(path)
    weights = open_weights(weights_path, allow_pickle=allow_pickle)
    try:
        content = reader(weights, config, shown(path))
        flags = [*content.flags]
        if more := adapters_inside(path):
            names = ", ".join(shown(name, 60) for name in more[:8])
            flags.append(f"{len(more)} more adapters in its subfolders aren't read: {names}")
        if os.path.isdir(path):
            flags += unread_flags(path, [weights_path])
        return Adapter(path, replace(content, flags=tuple(flags)), weights)
    except BaseException:
        weights.close()
        raise


def _recognised(path: Path) -> _Recognised:
    if os.path.isdir(path):  # Path.is_dir fails on some odd names
        return _in_folder(path)
    if path.name == CONFIG_NAME and os.path.lexists(path):
        return _in_folder(path.parent)
    with SourceFile.open(path, root=path.parent) as file:
        if bytes(file.read(0, min(4, file.size))) == b"GGUF":
            return path, {}, read_gguf_lora
    config = path.parent / CONFIG_NAME
    has_config = os.path.lexists(config)
    if path.name.startswith("adapter_model."):
        if not has_config:
            raise _without_config(path.parent)
        return path, read_json(config, root=path.parent), read_peft
    if path.name.endswith(_MLX_NAME) and has_config:
        return path, read_json(config, root=path.parent), read_mlx
    return path, {}, read_diffusion


def _in_folder(folder: Path) -> _Recognised:
    if not os.path.lexists(folder / CONFIG_NAME):
        files = _named(folder, ".safetensors", ".gguf") or _named(folder, "lora_weights.bin")
        if len(files) == 1 and not os.path.lexists(folder / "config.json"):
            return _recognised(folder / files[0])
        raise _without_config(folder)
    config = read_json(folder / CONFIG_NAME, root=folder)
    if "peft_type" in config:
        pickled = folder / _PICKLE_NAME
        if not os.path.lexists(folder / WEIGHTS_NAME) and os.path.lexists(pickled):
            return pickled, config, read_peft
        return folder / WEIGHTS_NAME, config, read_peft
    if "lora_parameters" in config or "fine_tune_type" in config:
        old = _named(folder, ".npz")
        if old and not os.path.lexists(folder / _MLX_NAME):
            raise InputError(
                f"{shown(folder)}: holds {shown(old[0])}, MLX's old format; "
                f"save it as {_MLX_NAME}: "
                f'mx.save_safetensors("{_MLX_NAME}", mx.load("adapters.npz"))'
            )
        return folder / _MLX_NAME, config, read_mlx
    keys = ", ".join(shown(key, 40) for key in list(config)[:6]) or "nothing"
    raise InputError(
        f"{shown(folder / CONFIG_NAME)}: is neither PEFT's (it has no peft_type) nor MLX's (no "
        f"lora_parameters), but has {keys}; give {_FORMATS}, or merge the adapter in the "
        "library that saved it and compare checkpoints"
    )


def _without_config(folder: Path) -> InputError:
    """Return the error for a folder without adapter_config.json, by what it contains."""
    refuse_several_adapters(folder)
    where = f"{shown(folder)}:"
    if os.path.lexists(folder / "config.json") or os.path.lexists(folder / "model_index.json"):
        return InputError(
            f"{where} is a whole model, not an adapter (no {CONFIG_NAME}); compare it "
            "with its base as two checkpoints"
        )
    files = _named(folder, ".safetensors", ".gguf")
    if any(name.startswith("adapter_model.") for name in files):
        return InputError(
            f"{where} no {CONFIG_NAME}, so the scaling is unknown; put the one that "
            "was saved with the weights beside them"
        )
    if len(files) > 1:
        return InputError(
            f"{where} no {CONFIG_NAME}, and {len(files)} files that may be adapters "
            f"({', '.join(shown(name, 60) for name in files[:6])}); give the path of one"
        )
    return InputError(f"{where} no {CONFIG_NAME} in it; give {_FORMATS}")


def _named(folder: Path, *suffixes: str) -> list[str]:
    return [path.name for path in listed(folder) if path.name.lower().endswith(suffixes)]
