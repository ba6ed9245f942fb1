"""What runs read: the folder of a pretrained model, and the splits tokenised for it.

A process reads each of them once. Every call verifies their files again, which is fast, because a
file's hash is computed again only after the file has changed.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from lowrank_study import assets
from lowrank_study.data.splits import Splits, load_splits
from lowrank_study.hashing import find_named, keep_named, sha256_of, sha256_of_file
from lowrank_study.spec import BaseModel, LocalPath, RunSpec


def model_folder(model: BaseModel) -> Path:
    """Return the verified folder of a pretrained model in Hugging Face's layout.

    A model that isn't in the cache is fetched. A GGUF file is converted to fp32 safetensors once.

    Raises:
        InputError: The model can't be fetched, or has changed since the run was configured.
    """
    path = assets.fetch(model.source)
    return _dequantised(path) if path.suffix == ".gguf" else path


def weights_sha256(model: BaseModel, folder: Path) -> str:
    """Return one hash over the files of a model's folder that are read."""
    is_local = isinstance(model.source, LocalPath)
    return assets.sha256_of_source(folder) if is_local else sha256_of(folder)


def splits_of(spec: RunSpec) -> Splits:
    """Return the splits of a run's task, tokenised for its model."""
    return load_splits(spec.task, model_folder(spec.model))


def _dequantised(path: Path) -> Path:
    """Return the folder with the model of a GGUF file as fp32 safetensors."""
    parent, key = assets.cache_folder() / "dequantised", sha256_of_file(path)[:24]
    if (folder := find_named(parent, stem=key)) is not None:
        return folder
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assets.require_free_space(parent, 20 * path.stat().st_size)
    parent.mkdir(parents=True, exist_ok=True)
    named: dict[str, Any] = {"gguf_file": path.name}
    made = Path(tempfile.mkdtemp(dir=parent))
    try:
        model = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **named)
        # The weights are plain fp32 now, but the library refuses to save a model marked as GGUF.
        model.hf_quantizer = None
        model.config.quantization_config = None
        model.save_pretrained(made)
        AutoTokenizer.from_pretrained(path.parent, **named).save_pretrained(made)
        return keep_named(made, parent, stem=key)
    finally:
        shutil.rmtree(made, ignore_errors=True)
