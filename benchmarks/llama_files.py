"""Write files in the shapes of Llama-7B: an adapter, and a pair of checkpoints.

    write_adapter(folder, layers=32, rank=8, hidden=HIDDEN, inner=INNER)
    tensors = shapes(1, hidden=HIDDEN, inner=INNER, vocabulary=VOCABULARY)
    write_pair(before, after, tensors, filled=["lm_head.weight"])

The numbers are random. The layout is real: names, shapes, bfloat16, shards and their index.
Unfilled tensors are holes in a sparse file, which read as zeros, so a checkpoint of 13.5 GB takes
little space.
"""

import json
from collections.abc import Collection
from math import prod
from pathlib import Path

import torch

from lowrank_study.checkpoints import save_adapter

HIDDEN, INNER, VOCABULARY, LAYERS = 4096, 11008, 32000, 32
LINEARS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
"""The seven linear maps of a layer, (out, in)."""
SHARDS = 2
"""Files of each checkpoint."""
PLANTED_RANK = 4
"""Rank of the change of each filled matrix."""
CHANGE = 0.3
"""Norm of the change, as a share of that of the matrix; bfloat16 rounds to about 0.0016."""


def write_adapter(folder: Path, *, layers: int, rank: int, hidden: int, inner: int) -> int:
    """Write a LoRA adapter in PEFT's layout on all linear maps; return how many."""
    torch.manual_seed(0)
    factors = {
        f"model.layers.{layer}.{name}": (torch.randn(rank, in_), torch.randn(out, rank))
        for layer in range(layers)
        for name, (out, in_) in scaled(hidden, inner).items()
    }
    save_adapter(
        folder,
        factors=factors,
        saved_modules={},
        modules_to_save=[],
        rank=rank,
        alpha=16.0,
        use_rslora=False,
        dropout=0.0,
        target_modules=sorted({name.rpartition(".")[2] for name in LINEARS}),
        base_model_name="llama-7b",
        task_type="CAUSAL_LM",
    )
    return len(factors)


def scaled(hidden: int, inner: int) -> dict[str, tuple[int, int]]:
    """Return the seven maps at another width."""
    width = {HIDDEN: hidden, INNER: inner}
    return {name: (width[out], width[in_]) for name, (out, in_) in LINEARS.items()}


def shapes(layers: int, *, hidden: int, inner: int, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor of a model, in the order of its files."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        found |= {f"{prefix}.{name}.weight": shape for name, shape in scaled(hidden, inner).items()}
        found |= {
            f"{prefix}.{norm}_layernorm.weight": (hidden,) for norm in ("input", "post_attention")
        }
    return found | {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}


def write_pair(
    before: Path,
    after: Path,
    tensors: dict[str, tuple[int, ...]],
    *,
    filled: Collection[str],
) -> None:
    """Write two sharded bfloat16 checkpoints that differ by a matrix of planted rank.

    Args:
        before: Folder to make.
        after: Folder to make.
        tensors: Name to shape, as `shapes` gives it.
        filled: Names of the matrices with random numbers; all others are zero in both.
    """
    places: dict[str, tuple[str, int]] = {}
    names = list(tensors)
    for number in range(SHARDS):
        part = names[number * len(names) // SHARDS : (number + 1) * len(names) // SHARDS]
        file = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        header, position = {"__metadata__": {"format": "pt"}}, 0
        for name in part:
            size = 2 * prod(tensors[name])
            entry = {
                "dtype": "BF16",
                "shape": list(tensors[name]),
                "data_offsets": [position, position + size],
            }
            header[name] = entry  # type: ignore[assignment]
            places[name] = file, position
            position += size
        raw = json.dumps(header).encode()
        raw += b" " * (-len(raw) % 8)
        for folder in (before, after):
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / file).open("wb") as opened:
                opened.write(len(raw).to_bytes(8, "little") + raw)
                opened.truncate(8 + len(raw) + position)
        places |= {name: (file, 8 + len(raw) + places[name][1]) for name in part}
    for folder in (before, after):
        index = {"metadata": {}, "weight_map": {name: places[name][0] for name in tensors}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        (folder / "config.json").write_text('{"model_type": "llama"}')
    random = torch.Generator().manual_seed(0)
    for name in filled:
        out, in_ = tensors[name]
        W0_OI = torch.randn(out, in_, generator=random).mul_(0.02)
        left = torch.randn(out, PLANTED_RANK, generator=random)
        right = torch.randn(PLANTED_RANK, in_, generator=random)
        # |left @ right| is about sqrt(rank * out * in)
        scale = CHANGE * 0.02 / PLANTED_RANK**0.5
        file, start = places[name]
        for folder, W_OI in ((before, W0_OI), (after, W0_OI.addmm(left, right, alpha=scale))):
            with (folder / file).open("r+b") as opened:
                opened.seek(start)
                opened.write(W_OI.bfloat16().view(torch.int16).numpy().data)
