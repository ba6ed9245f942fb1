"""Convert a GGUF file to a Hugging Face model folder, once, and verify the folder at each use."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from lowrank_study import assets
from lowrank_study.hashing import find_named, keep_named, sha256_of_file


def dequantised(path: Path) -> Path:
    """Return the folder that holds a GGUF file's model as fp32 safetensors."""
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
