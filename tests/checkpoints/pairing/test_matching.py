"""Matrices and vectors of two checkpoints are matched, skipped or refused."""

from typing import Any

import numpy as np
import pytest
import torch

from lowrank_study.checkpoints import open_weights, pair
from lowrank_study.errors import InputError
from tests.checkpoints.conftest import tiny_gpt2


def test_nan_and_inf_are_skipped_with_their_count(paired: Any) -> None:
    good = {"good": np.ones((2, 2), np.float32), "bias": np.zeros(2, np.float32)}
    before = {"nan": np.ones((2, 2), np.float32), "inf": np.ones((2, 2), np.float32), **good}
    after = {name: value.copy() for name, value in before.items()}
    after["nan"][0] = np.nan
    before["inf"][1, 1] = np.inf
    after["inf"][0, 1] = -np.inf
    after["bias"][0] = np.nan
    pairing = paired(before, after)
    assert [match.name for match, _, _ in pairing.read_matrices()] == ["good"]
    assert list(pairing.read_vectors()) == []
    assert pairing.skipped == {
        "nan": "2 NaN and 0 infinite values",
        "inf": "0 NaN and 2 infinite values",
        "bias": "1 NaN and 0 infinite values",
    }


def test_a_pair_without_matches_is_refused_with_both_names(write_model: Any) -> None:
    a = write_model({"left.weight": torch.ones(2, 2)}, folder="a")
    b = write_model({"right.weight": torch.ones(2, 2)}, folder="b")
    with (
        open_weights(a) as left,
        open_weights(b) as right,
        pytest.raises(InputError, match=r"no matrix of .*left\.weight.* is in .*right\.weight"),
    ):
        pair(left, right)


def test_storage_and_extreme_values_reach_the_spectrum_unchanged(paired: Any) -> None:
    before = {"w": torch.full((2, 2), 1e30), "v": torch.ones(2, 2, dtype=torch.bfloat16)}
    after = {"w": torch.full((2, 2), -3e38), "v": torch.ones(2, 2, dtype=torch.float16)}
    pairing = paired(before, after)
    found = {match.name: (match.storage_dtype, w) for match, _, w in pairing.read_matrices()}
    assert found["w"][0] == "float32"
    np.testing.assert_array_equal(found["w"][1], after["w"].numpy())
    assert found["v"][0] == "bfloat16"  # of the two, the one with fewer significant bits
    assert any("bfloat16: each difference" in flag for flag in pairing.flags)


def test_tied_weights_are_counted_once(paired: Any) -> None:
    torch.manual_seed(0)
    embedding = torch.randn(8, 4)
    before = {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding.clone()}
    after = {name: value + 1 for name, value in before.items()}
    pairing = paired(before, after)
    assert [match.name for match in pairing.matches] == ["lm_head"]
    assert pairing.skipped == {"model.embed_tokens": "the same as lm_head (tied), counted there"}


def test_weights_that_were_untied_are_both_counted(paired: Any) -> None:
    torch.manual_seed(0)
    embedding = torch.randn(8, 4)
    before = {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding.clone()}
    after = {"model.embed_tokens.weight": embedding + 1, "lm_head.weight": embedding - 1}
    pairing = paired(before, after)
    assert len(pairing.matches) == 2
    late = {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding.clone()}
    late["lm_head.weight"][-1, -1] += 1
    assert len(paired(late, late).matches) == 2


def test_without_a_config_orientation_is_flagged(paired: Any) -> None:
    state = tiny_gpt2().state_dict()
    pairing = paired(state, state)
    assert any("orientation as stored" in flag for flag in pairing.flags)
    whole = next(m for m in pairing.matches if m.name == "h.0.attn.c_attn")
    assert whole.shape == (8, 24)
    assert any("fused in one tensor, measured as one matrix" in flag for flag in pairing.flags)
    assert next(m for m in pairing.matches if m.name == "h.0.mlp.c_fc").shape == (8, 32)


def test_one_config_decides_for_both(write_model: Any) -> None:
    before = tiny_gpt2().state_dict()
    after = {name: value + 1 for name, value in before.items()}
    left = open_weights(write_model(before, {"model_type": "gpt2"}, folder="with"))
    right = open_weights(write_model(after, folder="without"))
    for pairing in (pair(left, right), pair(right, left)):
        found = {match.name: (W0_OI, W_OI) for match, W0_OI, W_OI in pairing.read_matrices()}
        assert "h.0.attn.c_attn.value" in found
        W0_OI, W_OI = found["h.0.attn.c_proj"]  # square: its shape doesn't tell its orientation
        np.testing.assert_allclose(np.abs(W_OI - W0_OI), 1, rtol=0, atol=1e-6)


def test_different_numbers_of_heads_are_refused(write_model: Any) -> None:
    state = {"h.query_key_value.weight": torch.ones(24, 8)}
    left = write_model(state, {"model_type": "gpt_neox", "num_attention_heads": 2}, folder="2")
    right = write_model(state, {"model_type": "gpt_neox", "num_attention_heads": 4}, folder="4")
    with (
        open_weights(left) as before,
        open_weights(right) as after,
        pytest.raises(InputError, match=r"num_attention_heads is 2 in .* and 4 in"),
    ):
        pair(before, after)


@pytest.mark.parametrize(("rows_before", "rows_after"), [(5, 8), (8, 5)])
def test_a_resized_vocabulary_compares_the_shared_rows(
    paired: Any, rng: np.random.Generator, rows_before: int, rows_after: int
) -> None:
    table = rng.standard_normal((8, 4)).astype(np.float32)
    other = {"h.weight": np.eye(4, dtype=np.float32)}
    pairing = paired(
        {"embed_tokens.weight": table[:rows_before], **other},
        {"embed_tokens.weight": 2 * table[:rows_after], **other},
    )
    match = next(match for match in pairing.matches if match.name == "embed_tokens")
    W0_OI, W_OI = match.read()
    np.testing.assert_array_equal(W_OI - W0_OI, table[:5])
    assert match.shape == (5, 4)


def test_another_architecture_is_refused(write_model: Any) -> None:
    state = {"w.weight": torch.ones(2, 2)}
    left = open_weights(write_model(state, {"model_type": "bert"}, folder="a"))
    right = open_weights(write_model(state, {"model_type": "roberta"}, folder="b"))
    with pytest.raises(InputError, match=r"model_type is bert in .* and roberta in"):
        pair(left, right)


def test_another_size_is_refused(paired: Any) -> None:
    small = {f"{i}.weight": torch.ones(2, 2) for i in range(4)} | {"same.weight": torch.ones(3, 3)}
    large = {f"{i}.weight": torch.ones(4, 4) for i in range(4)} | {"same.weight": torch.ones(3, 3)}
    with pytest.raises(InputError, match="have different shapes in 4 of 5 matrices"):
        paired(small, large)


def test_identical_checkpoints_differ_by_exactly_zero(paired: Any) -> None:
    state = tiny_gpt2().state_dict()
    pairing = paired(state, state, {"model_type": "gpt2"})
    count = 0
    for _, W0_OI, W_OI in pairing.read_matrices():
        assert not np.any(W_OI - W0_OI)
        count += 1
    assert count == len(pairing.matches) == 8
    assert pairing.before.files[0].sha256 == pairing.after.files[0].sha256


def test_vectors_are_read_separately(paired: Any) -> None:
    before = {"a.weight": torch.ones(2, 2), "a.bias": torch.ones(2), "scale": torch.tensor(3.0)}
    after = {"a.weight": torch.ones(2, 2), "a.bias": torch.zeros(2), "scale": torch.tensor(4.0)}
    pairing = paired(before, after)
    assert [match.name for match in pairing.matches] == ["a"]
    found = {name: (w0.tolist(), w.tolist()) for name, w0, w in pairing.read_vectors()}
    assert found == {"a.bias": ([1.0, 1.0], [0.0, 0.0]), "scale": (3.0, 4.0)}


def test_shapes_that_differ_are_skipped_and_never_broadcast(paired: Any) -> None:
    same = {f"{i}.weight": torch.ones(2, 2) for i in range(3)}
    pairing = paired(
        same | {"x.weight": torch.ones(1, 4), "b": torch.ones(1)},
        same | {"x.weight": torch.ones(4, 4), "b": torch.ones(4)},
    )
    assert [match.name for match in pairing.matches] == ["0", "1", "2"]
    assert pairing.skipped == {
        "x": "shape [1, 4] before, [4, 4] after",
        "b": "shape [1] before, [4] after",
    }


def test_alternating_rows_of_gate_and_up_are_split(paired: Any) -> None:
    """GPT-OSS stores (experts, in, out), with alternating columns of gate and up."""
    stack = np.random.default_rng(0).standard_normal((2, 4, 6)).astype(np.float32)
    single = {
        f"mlp.experts.{expert}.{part}.weight": np.ascontiguousarray(stack[expert, :, first::2].T)
        for expert in range(2)
        for first, part in enumerate(("gate_proj", "up_proj"))
    }
    config = {"model_type": "gpt_oss"}
    pairing = paired({"mlp.experts.gate_up_proj": stack}, single, config)
    assert len(pairing.matches) == 4
    for match, W0_OI, W_OI in pairing.read_matrices():
        assert match.name in {name.removesuffix(".weight") for name in single}
        np.testing.assert_array_equal(W0_OI, W_OI)


def test_tensors_of_several_linear_maps_are_flagged(paired: Any) -> None:
    state = {
        "conv.dwconv.weight": torch.ones(8, 1, 3, 3),
        "ffn.experts.mlp.w1": torch.ones(12, 4),
        "q.weight": torch.ones(4, 4),
    }
    config = {"model_type": "dbrx"}
    pairing = paired(state, state, config)
    flags = " ".join(pairing.flags)
    assert "a convolution in groups, or of one input channel" in flags
    assert "conv.dwconv" in flags
    assert "all experts stacked in one tensor" in flags


pytestmark = [
    # PEFT's own remarks about models that have no config
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    pytest.mark.filterwarnings("ignore:.*save_embedding_layers.*"),
]


def test_a_merge_stored_in_16_bits_is_flagged(write_model: Any) -> None:
    torch.manual_seed(0)
    base = {"q.weight": torch.randn(4, 4)}
    merged = {"q.weight": (base["q.weight"] + 0.01).to(torch.bfloat16)}
    left = open_weights(write_model(base, {"model_type": "x"}, folder="a"))
    right = open_weights(write_model(merged, {"model_type": "x"}, folder="b"))
    with left, right:
        assert pair(left, right).flags == [
            "stored in bfloat16: each difference (as of a merged adapter) carries rounding noise"
        ]
