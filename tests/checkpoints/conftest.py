"""Files for the tests: valid checkpoints, and files of any bytes."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from lowrank_study.checkpoints import Pairing, open_weights, pair

WriteRaw = Callable[..., Path]
ONE = b"\0\0\x80\x3f"
"""The bytes of 1.0 in float32."""


@pytest.fixture
def write_raw(tmp_path: Path) -> WriteRaw:
    """Write a safetensors file with any header and any bytes."""

    def write(
        header: Mapping[str, Any] | bytes,
        data: bytes = b"",
        name: str = "model.safetensors",
        length: int | None = None,
    ) -> Path:
        raw = header if isinstance(header, bytes) else json.dumps(header).encode()
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        size = len(raw) if length is None else length
        path.write_bytes(size.to_bytes(8, "little") + raw + data)
        return path

    return write


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Write a model of three tensors in two shards, with their index."""
    folder = tmp_path / "sharded"
    folder.mkdir()
    weight_map = {}
    for number, names in enumerate((["a", "b"], ["c"]), start=1):
        shard = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: torch.full((2, 2), ord(name)) * 1.0 for name in names}, folder / shard)
        weight_map.update(dict.fromkeys(names, shard))
    index = {"metadata": {"total_size": 48}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def entry() -> Callable[..., dict[str, Any]]:
    """Describe one tensor of a safetensors header."""

    def make(start: int, stop: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
        return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}

    return make


@pytest.fixture
def write_model(tmp_path: Path) -> Callable[..., Path]:
    """Write a model folder of given tensors and config."""

    def write(
        tensors: Mapping[str, Any],
        config: Mapping[str, Any] | None = None,
        folder: str = "model",
        name: str = "model.safetensors",
    ) -> Path:
        path = tmp_path / folder
        path.mkdir(parents=True, exist_ok=True)
        as_torch = {
            key: torch.from_numpy(np.ascontiguousarray(value))
            if isinstance(value, np.ndarray)
            else value.contiguous().clone()
            for key, value in tensors.items()
        }
        save_file(as_torch, path / name, metadata={"format": "pt"})
        if config is not None:
            (path / "config.json").write_text(json.dumps(config))
        return path

    return write


@pytest.fixture
def paired(write_model: Callable[..., Path]) -> Callable[..., Pairing]:
    """Write two models with one config, open them and pair them."""

    def make(
        before: Mapping[str, Any], after: Mapping[str, Any], config: Mapping[str, Any] | None = None
    ) -> Pairing:
        left = open_weights(write_model(before, config, folder="before"))
        right = open_weights(write_model(after, config, folder="after"))
        return pair(left, right)

    return make


@pytest.fixture
def write_adapter(tmp_path: Path) -> Callable[..., Path]:
    """Write an adapter folder of given tensors and settings."""

    def write(
        tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], folder: str = "adapter"
    ) -> Path:
        path = tmp_path / folder
        path.mkdir(parents=True, exist_ok=True)
        save_file(dict(tensors), path / "adapter_model.safetensors", metadata={"format": "pt"})
        (path / "adapter_config.json").write_text(json.dumps(config))
        return path

    return write


@pytest.fixture
def rng() -> np.random.Generator:
    """Numbers that are the same in every run."""
    return np.random.default_rng(0)


@pytest.fixture
def refused_in_budget() -> Callable[..., str]:
    """Open a path in a separate process; it must be refused within 2 s and 512 MB.

    Processor time counts, because other processes may delay this one; a process that waits is
    stopped after a minute. The memory includes the interpreter.
    """
    program = """
import sys, time
start = time.process_time()
from lowrank_study import checkpoints
from lowrank_study.errors import InputError
opener = getattr(checkpoints, sys.argv[1])
options = {"allow_pickle": True} if sys.argv[3] == "pickle" else {}
start = time.process_time() if options else start
try:
    opener(sys.argv[2], **options)
    message = ""
except InputError as error:
    message = str(error)
seconds = time.process_time() - start
with open("/proc/self/status") as status:
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
print(seconds, peak / 1024, "torch" in sys.modules)
print(message)
"""

    def check(path: Path, opener: str = "open_weights", *, pickle: bool = False) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program, opener, str(path), "pickle" if pickle else ""],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            cwd=Path(__file__).parents[2],
        )
        numbers, _, message = done.stdout.partition("\n")
        seconds, megabytes, _ = numbers.split()
        assert message.strip(), "it was not refused"
        assert message.count("\n") == 1, message
        assert float(seconds) < 2, numbers
        assert float(megabytes) < 512, numbers
        return message.strip()

    return check


TEXT = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 32, "max_position_embeddings": 32, "head_dim": 8,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TOWER = {
    "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 8, "patch_size": 4,
}  # fmt: skip
QWEN_TOWER = {
    "depth": 1, "hidden_size": 12, "out_hidden_size": 16, "num_heads": 2, "patch_size": 4,
    "intermediate_size": 20,
}  # fmt: skip
EXPERTS = {
    "num_experts": 3, "num_local_experts": 3, "num_experts_per_tok": 1, "moe_intermediate_size": 20,
    "shared_expert_intermediate_size": 20,
}  # fmt: skip
ROPE = {"type": "default", "rope_type": "default", "mrope_section": [2, 1, 1]}


def _random_model(name: str) -> Any:
    text, llama = dict(TEXT), {"model_type": "llama", **TEXT}
    clip = {"model_type": "clip_vision_model", **TOWER}
    t = transformers
    configs: dict[str, Callable[[], Any]] = {
        "Qwen2_5_VLForConditionalGeneration": lambda: t.Qwen2_5_VLConfig(
            text_config=text | {"rope_scaling": ROPE}, vision_config=QWEN_TOWER
        ),
        "Qwen3VLMoeForConditionalGeneration": lambda: t.Qwen3VLMoeConfig(
            text_config=text | EXPERTS, vision_config=QWEN_TOWER | {"deepstack_visual_indexes": [0]}
        ),
        "LlavaForConditionalGeneration": lambda: t.LlavaConfig(
            vision_config=clip, text_config=llama
        ),
        "Gemma3ForConditionalGeneration": lambda: t.Gemma3Config(
            vision_config={"model_type": "siglip_vision_model", **TOWER},
            text_config=text | {"query_pre_attn_scalar": 8},
            mm_tokens_per_image=4,
        ),
        "MixtralForCausalLM": lambda: t.MixtralConfig(**text, **EXPERTS),
        "Qwen3MoeForCausalLM": lambda: t.Qwen3MoeConfig(**text, **EXPERTS),
        "ViTForImageClassification": lambda: t.ViTConfig(**TOWER),
        "BertForMaskedLM": lambda: t.BertConfig(**text),
        "Qwen2ForCausalLM": lambda: t.Qwen2Config(
            **{k: v for k, v in text.items() if k != "head_dim"}, tie_word_embeddings=True
        ),
    }
    model = getattr(t, name)(configs[name]())
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random))
    return model


@pytest.fixture
def random_model() -> Callable[[str], Any]:
    """Make a transformers model of a class, with one layer and random weights."""
    return _random_model


@pytest.fixture
def own_state() -> Callable[[Any], dict[str, torch.Tensor]]:
    """Return a model's weights under the current names of the code; a tied tensor only once."""

    def state_of(model: Any) -> dict[str, torch.Tensor]:
        found: dict[int, tuple[str, torch.Tensor]] = {}
        for name, tensor in model.state_dict().items():
            found.setdefault(tensor.data_ptr(), (name, tensor.clone()))
        return dict(found.values())

    return state_of


PLAIN = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}


def two_factors(module: str = "q") -> dict[str, torch.Tensor]:
    return {
        f"base_model.model.{module}.lora_A.weight": torch.ones(2, 3),
        f"base_model.model.{module}.lora_B.weight": torch.ones(4, 2),
    }


def tiny_gpt2() -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=8, n_layer=1, n_head=2, vocab_size=11, n_positions=4, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2Model(config)
