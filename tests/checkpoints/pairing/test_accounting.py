"""Every parameter of two checkpoints is compared, tied, a buffer, or reported as left out."""

import random
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch

from lowrank_study.checkpoints import Pairing, Weights, open_weights, pair
from lowrank_study.checkpoints.names import is_buffer

State = dict[str, torch.Tensor]
WriteModel = Callable[..., Path]


def values(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(prod(shape)))


def decoder(model_type: str) -> tuple[State, dict[str, Any]]:
    """Return a language model with an embedding, two layers and a buffer in each."""
    state = {"model.embed_tokens.weight": values(24, 8)}
    for layer in ("model.layers.0", "model.layers.1"):
        if model_type == "phi3":
            state |= {f"{layer}.self_attn.qkv_proj.weight": values(16, 8)}
            state |= {f"{layer}.mlp.gate_up_proj.weight": values(12, 8)}
        else:
            state |= {f"{layer}.self_attn.q_proj.weight": values(8, 8)}
            state |= {f"{layer}.mlp.experts.gate_up_proj": values(3, 12, 8)}
            state |= {f"{layer}.mlp.experts.down_proj": values(3, 8, 6)}
        state |= {f"{layer}.self_attn.rotary_emb.inv_freq": values(4)}
        state |= {f"{layer}.input_layernorm.weight": values(8)}
    sizes = {"hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2}
    return state, {"model_type": model_type, **sizes}


def gpt2() -> tuple[State, dict[str, Any]]:
    state = {"wte.weight": values(24, 8), "wpe.weight": values(10, 8)}
    for layer in ("h.0", "h.1"):
        state |= {f"{layer}.attn.c_attn.weight": values(8, 24), f"{layer}.ln_1.bias": values(8)}
        state |= {f"{layer}.attn.bias": torch.ones(1, 1, 10, 10)}
    return state, {"model_type": "gpt2", "n_embd": 8, "n_head": 2}


def vision() -> tuple[State, dict[str, Any]]:
    state = {"embeddings.patch.weight": values(8, 3, 2, 2), "embeddings.cls": values(1, 1, 8)}
    for layer in ("encoder.layer.0", "encoder.layer.1"):
        state |= {f"{layer}.attention.query.weight": values(8, 8)}
        state |= {f"{layer}.conv.weight": values(8, 1, 3, 3), f"{layer}.conv.bias": values(8)}
    return state, {"model_type": "vit", "hidden_size": 8, "num_attention_heads": 2}


MODELS = (lambda: decoder("mixtral"), lambda: decoder("phi3"), gpt2, vision)


def renamed(state: State) -> State:
    return {name.replace("model.", "model.language_model.", 1): t for name, t in state.items()}


def headless(state: State) -> State:
    return {name.removeprefix("model."): tensor for name, tensor in state.items()}


def one_by_one(state: State) -> State:
    result: State = {}
    for name, tensor in state.items():
        module, _, leaf = name.rpartition(".")
        for expert, matrix in enumerate(tensor) if leaf in ("gate_up_proj", "down_proj") else ():
            parts = {"down_proj": matrix}
            if leaf == "gate_up_proj":
                parts = dict(zip(("gate_proj", "up_proj"), matrix.chunk(2), strict=True))
            result |= {f"{module}.{expert}.{part}.weight": each for part, each in parts.items()}
        if leaf not in ("gate_up_proj", "down_proj"):
            result[name] = tensor
    return result


def with_more(state: State) -> State:
    """Add a head, and a parameter that is named as a module beside it."""
    head = {"score.weight": values(2, 8), "score": values(3, 8), "score.bias": values(2)}
    return state | head | {"steps": torch.tensor([3])}


def with_less(state: State) -> State:
    gone = random.sample(list(state), 2)
    return {name: tensor for name, tensor in state.items() if name not in gone}


def grown(state: State) -> State:
    return {
        name: torch.cat([t, values(3, 8)]) if t.shape == (24, 8) and "attn" not in name else t
        for name, t in state.items()
    }


def of_other_shape(state: State) -> State:
    name = random.choice([name for name, tensor in state.items() if tensor.ndim == 2])
    return state | {name: state[name][:, 1:]}


def tied(state: State) -> State:
    stored = [name for name in state if name.endswith(("embed_tokens.weight", "wte.weight"))]
    return state | {"lm_head.weight": state[stored[0]]} if stored else state


def diverged(state: State) -> State:
    name = random.choice([name for name, tensor in state.items() if tensor.is_floating_point()])
    return state | {name: torch.full_like(state[name], torch.nan)}


CHANGES = (
    renamed, headless, one_by_one, with_more, with_less, grown, of_other_shape, tied, diverged,
)  # fmt: skip


def accounted(pairing: Pairing, index: int, weights: Weights) -> int:
    """Count the parameters of one side that are compared, tied, buffers or left out."""
    side = ("before", "after")[index]
    left_out = [part for part in pairing.left_out() if part.of == side]
    # What isn't compared for its numbers is among the matches all the same.
    broken = {name for name, why in pairing.skipped.items() if "NaN" in why}
    matches = [match for match in pairing.matches if match.name not in broken]
    vectors = [pair[index] for name, pair in pairing.vectors.items() if name not in broken]
    by_matrix = {(match.before, match.after)[index]: prod(match.shape) for match in matches}
    compared = sum(by_matrix.values())
    compared += sum(prod(weights.shape(name)) for name in vectors)
    twins = {name for name, why in pairing.skipped.items() if "(tied)" in why}
    own = [name for name in weights.names() if name.removesuffix(".weight") in twins]
    own += [
        name
        for name in weights.names()
        if is_buffer(name, weights.shape(name))
        and not any(name == tensors[index] for tensors in pairing.vectors.values())
    ]
    if left_out:
        uncounted = sum(prod(weights.shape(name)) for name in own)
        whole = sum(prod(weights.shape(name)) for name in weights.names())
        assert {part.total for part in left_out} == {whole - uncounted}
    rest = sum(prod(weights.shape(name)) for name in own)
    return compared + rest + sum(part.count for part in left_out)


@pytest.mark.parametrize("seed", range(80))
def test_every_parameter_is_compared_or_accounted_for(seed: int, write_model: WriteModel) -> None:
    random.seed(seed)
    state, config = MODELS[seed % len(MODELS)]()
    opened = []
    for folder, most in (("before", 1), ("after", 3)):
        changed = dict(state)
        for change in random.sample(CHANGES, random.randint(0, most)):
            changed = change(changed)
        opened.append(open_weights(write_model(changed, config, folder=folder)))
    with opened[0] as before, opened[1] as after:
        pairing = pair(before, after)
        list(pairing.read_matrices())
        list(pairing.read_vectors())
        for index, weights in enumerate((before, after)):
            total = sum(prod(weights.shape(name)) for name in weights.names())
            assert accounted(pairing, index, weights) == total, pairing.skipped
