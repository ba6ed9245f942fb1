"""Heads that are or were tied to the embedding are matched in either checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lowrank_study.checkpoints import open_weights, pair

MakeModel = Callable[[str], Any]


def test_a_tied_head_that_one_file_stores_is_not_left_out(
    tmp_path: Path, random_model: MakeModel
) -> None:
    model = random_model("Qwen2ForCausalLM")
    model.save_pretrained(tmp_path / "once")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= state.keys()
    save_file(state, tmp_path / "twice.safetensors")
    with (
        open_weights(tmp_path / "once") as left,
        open_weights(tmp_path / "twice.safetensors") as right,
    ):
        for pairing in (pair(left, right), pair(right, left)):
            assert pairing.left_out() == []
            assert "(tied), counted there" in pairing.skipped["lm_head"]
    state["lm_head.weight"][0, 0] += 1.0
    save_file(state, tmp_path / "untied.safetensors")
    with (
        open_weights(tmp_path / "once") as left,
        open_weights(tmp_path / "untied.safetensors") as right,
    ):
        pairing = pair(left, right)
        assert pairing.left_out() == []
        (change,) = (W - W0 for match, W0, W in pairing.read_matrices() if match.name == "lm_head")
        assert np.flatnonzero(change).tolist() == [0]


@pytest.mark.parametrize(("tie", "compared"), [(True, 1), (None, 1), (False, 0)])
def test_a_tied_vocabulary_is_compared_under_either_name(
    paired: Any, tie: bool | None, compared: int
) -> None:
    W = torch.arange(320.0).reshape(40, 8)
    config = {"model_type": "llama"} | ({} if tie is None else {"tie_word_embeddings": tie})
    layer = {"model.layers.0.q.weight": torch.eye(8)}
    before = {"model.embed_tokens.weight": W} | layer
    after = {"lm_head.weight": W + 1} | layer
    pairing = paired(before, after, config)
    assert len(pairing.matches) == 1 + compared
    assert bool(pairing.left_out()) != bool(compared)
    if compared:
        assert sorted(float((W - W0).mean()) for _, W0, W in pairing.read_matrices()) == [0.0, 1.0]
        assert "embed_tokens is tied in the tuned checkpoint, where it is lm_head" in str(
            pairing.flags
        )


def test_the_head_of_an_untied_model_is_compared_with_the_embedding(write_model: Any) -> None:
    W0 = torch.arange(320.0).reshape(40, 8)
    config = {"model_type": "llama", "tie_word_embeddings": True}
    before = {"model.embed_tokens.weight": W0}
    after = {"model.embed_tokens.weight": W0 + 1, "lm_head.weight": torch.cat([W0 + 3, W0[:2]])}
    left = open_weights(write_model(before, config, folder="before"))
    untied = config | {"tie_word_embeddings": False}
    right = open_weights(write_model(after, untied, folder="after"))
    pairing = pair(left, right)
    assert {m.name: float((W - W0).mean()) for m, W0, W in pairing.read_matrices()} == {
        "model.embed_tokens": 1.0,
        "lm_head": 3.0,
    }
    assert [(part.of, part.count, part.total) for part in pairing.left_out()] == [
        ("after", 16, 320 + 336)
    ]
    assert (
        "lm_head is tied in the pretrained checkpoint, where it is model.embed_tokens"
        in pairing.flags
    )
    # Without its own head, an untied base has no W0 for one.
    headless = open_weights(write_model(before, untied, folder="headless"))
    assert [m.name for m in pair(headless, right).matches] == ["model.embed_tokens"]
