"""Classes 35 to 46: how a model's matrices lie in its tensors, and how two models pair."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.models.bloom.modeling_bloom import BloomAttention
from transformers.models.falcon.modeling_falcon import FalconAttention

from lowrank_study.checkpoints import find_matrices, open_weights, pair
from lowrank_study.errors import InputError


def paired(write_model: Any, before: Any, after: Any, config: Any = None) -> Any:
    left = open_weights(write_model(before, config, folder="before"))
    right = open_weights(write_model(after, config, folder="after"))
    return pair(left, right)


@pytest.mark.parametrize(
    "wrapped",
    [
        "module.encoder.weight",
        "_orig_mod.encoder.weight",
        "base_model.model.encoder.weight",
        "_fsdp_wrapped_module.encoder.weight",
        "module._orig_mod.base_model.model.encoder.weight",
        "_fsdp_wrapped_module._checkpoint_wrapped_module.encoder._orig_mod.weight",
    ],
)
def test_35_wrapper_prefixes_are_stripped(write_model: Any, wrapped: str) -> None:
    pairing = paired(
        write_model,
        {"encoder.weight": torch.ones(2, 3)},
        {wrapped: torch.full((2, 3), 2.0)},
    )
    ((match, W0_OI, W_OI),) = pairing.read_matrices()
    assert match.name == "encoder"
    np.testing.assert_array_equal(W_OI - W0_OI, np.ones((2, 3)))


def test_35_inner_parts_of_a_name_are_kept(write_model: Any) -> None:
    path = write_model({"encoder.module.weight": torch.ones(2, 2), "module.": torch.ones(1)})
    with open_weights(path) as weights:
        assert set(weights.names()) == {"encoder.module.weight", "module."}


def test_35_an_ambiguous_prefix_is_refused(write_model: Any) -> None:
    path = write_model({"w": torch.ones(2), "module.w": torch.ones(2)})
    with pytest.raises(InputError, match="are both w without wrapper prefixes"):
        open_weights(path)


def test_35_a_base_model_saved_without_its_head_is_matched(write_model: Any) -> None:
    names = [f"encoder.layer.{i}.{part}.weight" for i in range(3) for part in ("query", "key")]
    base = {name: torch.ones(2, 2) for name in names} | {"embeddings.LayerNorm.bias": torch.ones(2)}
    tuned = {f"bert.{name}": value + 1 for name, value in base.items()}
    tuned["classifier.weight"] = torch.ones(2, 2)
    pairing = paired(write_model, base, tuned)
    assert [match.name for match in pairing.matches] == [
        f"bert.{name.removesuffix('.weight')}" for name in sorted(names)
    ]
    assert list(pairing.vectors) == ["bert.embeddings.LayerNorm.bias"]
    assert pairing.skipped == {"classifier": "only in the tuned checkpoint"}
    assert "names of the pretrained checkpoint read with the prefix bert." in pairing.flags
    back = pair(pairing.after, pairing.before)
    assert "names of the tuned checkpoint read with the prefix bert." in back.flags
    assert len(back.matches) == 6


def test_35_two_prefixes_that_match_equally_well_are_refused(write_model: Any) -> None:
    base = {"q.weight": torch.ones(2, 2)}
    tuned = {"left.q.weight": torch.ones(2, 2), "right.q.weight": torch.ones(2, 2)}
    with pytest.raises(InputError, match="match equally well"):
        paired(write_model, base, tuned)


def test_36_tied_weights_are_counted_once(write_model: Any) -> None:
    torch.manual_seed(0)
    embedding = torch.randn(8, 4)
    before = {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding.clone()}
    after = {name: value + 1 for name, value in before.items()}
    pairing = paired(write_model, before, after)
    assert [match.name for match in pairing.matches] == ["lm_head"]
    assert pairing.skipped == {"model.embed_tokens": "the same as lm_head (tied), counted there"}


def test_36_weights_that_were_untied_are_both_counted(write_model: Any) -> None:
    torch.manual_seed(0)
    embedding = torch.randn(8, 4)
    before = {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding.clone()}
    after = {"model.embed_tokens.weight": embedding + 1, "lm_head.weight": embedding - 1}
    pairing = paired(write_model, before, after)
    assert len(pairing.matches) == 2
    late = {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding.clone()}
    late["lm_head.weight"][-1, -1] += 1
    assert len(paired(write_model, late, late).matches) == 2


def tiny_gpt2() -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=8, n_layer=1, n_head=2, vocab_size=11, n_positions=4, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2Model(config)


def test_37_conv1d_is_transposed_where_the_config_says_so(write_model: Any) -> None:
    model = tiny_gpt2()
    path = write_model(model.state_dict(), {"model_type": "gpt2", "n_head": 2})
    with open_weights(path) as weights:
        matrices, skipped = find_matrices(weights)
        x = torch.randn(3, 8)
        mlp = model.h[0].mlp
        assert matrices["h.0.mlp.c_fc"].shape == (32, 8)
        read = torch.from_numpy(matrices["h.0.mlp.c_fc"].read())
        torch.testing.assert_close(x @ read.T + mlp.c_fc.bias, mlp.c_fc(x), rtol=0, atol=1e-6)
        assert matrices["h.0.mlp.c_proj"].shape == (8, 32)
        assert matrices["wte"].shape == (11, 8)
        assert skipped == {}
        assert weights.shape("h.0.mlp.c_fc.weight") == (8, 32)


def test_37_without_a_config_orientation_is_flagged(write_model: Any) -> None:
    state = tiny_gpt2().state_dict()
    pairing = paired(write_model, state, state)
    assert any("orientation as stored" in flag for flag in pairing.flags)
    whole = next(m for m in pairing.matches if m.name == "h.0.attn.c_attn")
    assert whole.shape == (8, 24)
    assert any("fused in one tensor, measured as one matrix" in flag for flag in pairing.flags)
    assert next(m for m in pairing.matches if m.name == "h.0.mlp.c_fc").shape == (8, 32)


def test_37_one_config_decides_for_both(write_model: Any) -> None:
    before = tiny_gpt2().state_dict()
    after = {name: value + 1 for name, value in before.items()}
    left = open_weights(write_model(before, {"model_type": "gpt2"}, folder="with"))
    right = open_weights(write_model(after, folder="without"))
    for pairing in (pair(left, right), pair(right, left)):
        found = {match.name: (W0_OI, W_OI) for match, W0_OI, W_OI in pairing.read_matrices()}
        assert "h.0.attn.c_attn.value" in found
        W0_OI, W_OI = found["h.0.attn.c_proj"]  # square: its shape doesn't tell its orientation
        np.testing.assert_allclose(np.abs(W_OI - W0_OI), 1, rtol=0, atol=1e-6)


def test_40_heads_of_another_number_are_refused(write_model: Any) -> None:
    state = {"h.query_key_value.weight": torch.ones(24, 8)}
    left = write_model(state, {"model_type": "gpt_neox", "num_attention_heads": 2}, folder="2")
    right = write_model(state, {"model_type": "gpt_neox", "num_attention_heads": 4}, folder="4")
    with (
        open_weights(left) as before,
        open_weights(right) as after,
        pytest.raises(InputError, match=r"num_attention_heads is 2 in .* and 4 in"),
    ):
        pair(before, after)


def test_38_gpt2_c_attn_is_split_into_query_key_value(write_model: Any) -> None:
    model = tiny_gpt2()
    path = write_model(model.state_dict(), {"model_type": "gpt2"})
    x = torch.randn(3, 8)
    c_attn = model.h[0].attn.c_attn
    with open_weights(path) as weights:
        matrices, _ = find_matrices(weights)
        for part, expected in zip(
            ("query", "key", "value"), (c_attn(x) - c_attn.bias).split(8, dim=1), strict=True
        ):
            matrix = matrices[f"h.0.attn.c_attn.{part}"]
            assert matrix.shape == (8, 8)
            read = torch.from_numpy(matrix.read())
            torch.testing.assert_close(x @ read.T, expected, rtol=0, atol=1e-6)


FALCON = {"hidden_size": 16, "num_attention_heads": 4, "vocab_size": 10, "num_hidden_layers": 1}


@pytest.mark.parametrize(
    "options",
    [
        {"new_decoder_architecture": True, "num_kv_heads": 2},
        {"new_decoder_architecture": False, "multi_query": True},
        {"new_decoder_architecture": False, "multi_query": False},
    ],
    ids=["grouped", "multi-query", "multi-head"],
)
def test_38_falcon_is_split_as_its_own_code_does(write_model: Any, options: Any) -> None:
    torch.manual_seed(0)
    config = transformers.FalconConfig(**FALCON, **options)
    attention = FalconAttention(config, layer_idx=0)
    x = torch.randn(1, 3, 16)
    fused = torch.nn.functional.linear(x, attention.query_key_value.weight)
    path = write_model(
        {"h.query_key_value.weight": attention.query_key_value.weight.detach()},
        {"model_type": "falcon", **FALCON, **options},
    )
    with open_weights(path) as weights:
        matrices, skipped = find_matrices(weights)
        assert skipped == {}
        for part, expected in zip(
            ("query", "key", "value"), attention._split_heads(fused), strict=True
        ):
            read = torch.from_numpy(matrices[f"h.query_key_value.{part}"].read())
            heads = (x @ read.T).view(1, 3, -1, 4)
            if part != "query" and options["new_decoder_architecture"]:
                heads = heads.repeat_interleave(2, dim=2)  # each key serves two queries
            torch.testing.assert_close(heads, expected, rtol=0, atol=1e-6)


def test_38_bloom_and_gpt_neox_are_split_by_heads(write_model: Any) -> None:
    torch.manual_seed(0)
    config = transformers.BloomConfig(hidden_size=16, n_head=4, n_layer=1, vocab_size=10)
    attention = BloomAttention(config, layer_idx=0)
    x = torch.randn(1, 3, 16)
    weight = attention.query_key_value.weight.detach()
    parts = attention._reshape(torch.nn.functional.linear(x, weight))
    for number, model_type in enumerate(("bloom", "gpt_neox")):
        heads_key = {"bloom": "n_head", "gpt_neox": "num_attention_heads"}[model_type]
        path = write_model(
            {"h.query_key_value.weight": weight},
            {"model_type": model_type, heads_key: 4},
            folder=str(number),
        )
        with open_weights(path) as weights:
            matrices, _ = find_matrices(weights)
            for part, expected in zip(("query", "key", "value"), parts, strict=True):
                read = torch.from_numpy(matrices[f"h.query_key_value.{part}"].read())
                heads = (x @ read.T).view(1, 3, 4, 4).transpose(1, 2)
                torch.testing.assert_close(heads, expected, rtol=0, atol=1e-6)


def test_38_phi3_and_torch_attention_are_split_by_rows(
    write_model: Any, rng: np.random.Generator
) -> None:
    qkv = rng.standard_normal((16, 8)).astype(np.float32)
    gate_up = rng.standard_normal((12, 8)).astype(np.float32)
    config = {
        "model_type": "phi3",
        "hidden_size": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    path = write_model({"a.qkv_proj.weight": qkv, "a.gate_up_proj.weight": gate_up}, config)
    with open_weights(path) as weights:
        matrices, _ = find_matrices(weights)
        rows = {"query": (0, 8), "key": (8, 12), "value": (12, 16)}
        for part, (first, last) in rows.items():
            np.testing.assert_array_equal(matrices[f"a.qkv_proj.{part}"].read(), qkv[first:last])
        np.testing.assert_array_equal(matrices["a.gate_up_proj.gate"].read(), gate_up[:6])
        np.testing.assert_array_equal(matrices["a.gate_up_proj.up"].read(), gate_up[6:])
    attention = torch.nn.MultiheadAttention(4, 2)
    path = write_model({"t.in_proj_weight": attention.in_proj_weight.detach()}, folder="torch")
    with open_weights(path) as weights:
        matrices, _ = find_matrices(weights)
        np.testing.assert_array_equal(
            matrices["t.in_proj_weight.key"].read(), attention.in_proj_weight.detach()[4:8]
        )


@pytest.mark.parametrize(
    "config",
    [
        None,
        {"model_type": "gpt_bigcode", "num_attention_heads": 2},
        {"model_type": "gpt_neox"},
        {"model_type": "gpt_neox", "num_attention_heads": 5},
        {"model_type": "gpt_neox", "num_attention_heads": True},
        {"model_type": "falcon", "num_attention_heads": 4},
        {"model_type": ["gpt2"]},
    ],
    ids=str,
)
def test_38_what_is_fused_in_an_unknown_way_is_measured_whole_and_flagged(
    write_model: Any, config: Any
) -> None:
    state = {"h.query_key_value.weight": torch.ones(24, 8), "h.dense.weight": torch.ones(8, 8)}
    pairing = paired(write_model, state, state, config)
    assert [match.name for match in pairing.matches] == ["h.dense", "h.query_key_value"]
    assert pairing.left_out() == []
    (flag,) = [flag for flag in pairing.flags if "how to split it isn't known" in flag]
    assert "h.query_key_value" in flag


@pytest.mark.parametrize(("rows_before", "rows_after"), [(5, 8), (8, 5)])
def test_39_a_resized_vocabulary_compares_the_shared_rows(
    write_model: Any, rng: np.random.Generator, rows_before: int, rows_after: int
) -> None:
    table = rng.standard_normal((8, 4)).astype(np.float32)
    other = {"h.weight": np.eye(4, dtype=np.float32)}
    pairing = paired(
        write_model,
        {"embed_tokens.weight": table[:rows_before], **other},
        {"embed_tokens.weight": 2 * table[:rows_after], **other},
    )
    match = next(match for match in pairing.matches if match.name == "embed_tokens")
    W0_OI, W_OI = match.read()
    np.testing.assert_array_equal(W_OI - W0_OI, table[:5])
    assert match.shape == (5, 4)


def test_40_another_architecture_is_refused(write_model: Any) -> None:
    state = {"w.weight": torch.ones(2, 2)}
    left = open_weights(write_model(state, {"model_type": "bert"}, folder="a"))
    right = open_weights(write_model(state, {"model_type": "roberta"}, folder="b"))
    with pytest.raises(InputError, match=r"model_type is bert in .* and roberta in"):
        pair(left, right)


def test_40_another_size_is_refused(write_model: Any) -> None:
    small = {f"{i}.weight": torch.ones(2, 2) for i in range(4)} | {"same.weight": torch.ones(3, 3)}
    large = {f"{i}.weight": torch.ones(4, 4) for i in range(4)} | {"same.weight": torch.ones(3, 3)}
    with pytest.raises(InputError, match="have different shapes in 4 of 5 matrices"):
        paired(write_model, small, large)


def test_41_identical_checkpoints_differ_by_exactly_zero(write_model: Any) -> None:
    state = tiny_gpt2().state_dict()
    pairing = paired(write_model, state, state, {"model_type": "gpt2"})
    count = 0
    for _, W0_OI, W_OI in pairing.read_matrices():
        assert not np.any(W_OI - W0_OI)
        count += 1
    assert count == len(pairing.matches) == 8
    assert pairing.before.files[0].sha256 == pairing.after.files[0].sha256


def test_42_vectors_have_a_table_of_their_own(write_model: Any) -> None:
    before = {"a.weight": torch.ones(2, 2), "a.bias": torch.ones(2), "scale": torch.tensor(3.0)}
    after = {"a.weight": torch.ones(2, 2), "a.bias": torch.zeros(2), "scale": torch.tensor(4.0)}
    pairing = paired(write_model, before, after)
    assert [match.name for match in pairing.matches] == ["a"]
    found = {name: (w0.tolist(), w.tolist()) for name, w0, w in pairing.read_vectors()}
    assert found == {"a.bias": ([1.0, 1.0], [0.0, 0.0]), "scale": (3.0, 4.0)}


def test_43_a_convolution_becomes_out_by_the_rest(
    write_model: Any, rng: np.random.Generator
) -> None:
    kernel = rng.standard_normal((4, 3, 2, 5)).astype(np.float32)
    line = rng.standard_normal((4, 3, 2)).astype(np.float32)
    path = write_model(
        {"conv.weight": kernel, "line.weight": line, "cls_token": np.ones((1, 1, 4), np.float32)}
    )
    with open_weights(path) as weights:
        matrices, skipped = find_matrices(weights)
        assert matrices["conv"].shape == (4, 30)
        np.testing.assert_array_equal(matrices["conv"].read(), kernel.reshape(4, 30))
        np.testing.assert_array_equal(matrices["line"].read(), line.reshape(4, 6))
        assert list(skipped) == ["cls_token"]


@pytest.mark.parametrize("model_type", ["mixtral", "gpt_oss"])
def test_44_experts_are_read_one_by_one(
    write_model: Any, rng: np.random.Generator, model_type: str
) -> None:
    stack = rng.standard_normal((3, 4, 5)).astype(np.float32)
    bias = rng.standard_normal((3, 5)).astype(np.float32)
    path = write_model(
        {"mlp.experts.down_proj": stack, "mlp.experts.down_proj_bias": bias},
        {"model_type": model_type},
    )
    with open_weights(path) as weights:
        matrices, skipped = find_matrices(weights)
        assert list(matrices) == [f"mlp.experts.down_proj.{i}" for i in range(3)]
        for index in range(3):
            matrix = matrices[f"mlp.experts.down_proj.{index}"]
            expected = stack[index].T if model_type == "gpt_oss" else stack[index]
            assert matrix.shape == expected.shape
            np.testing.assert_array_equal(matrix.read(), expected)
        assert list(skipped) == ["mlp.experts.down_proj_bias"]


@pytest.mark.parametrize("name", ["blk.0.ffn_up_exps.weight", "block_sparse_moe.up_linear.weight"])
def test_44_experts_under_other_names_are_no_convolution(write_model: Any, name: str) -> None:
    with open_weights(write_model({name: torch.ones(3, 4, 5)})) as weights:
        matrices, _ = find_matrices(weights)
        assert [matrix.shape for matrix in matrices.values()] == [(4, 5)] * 3


def test_45_rows_of_a_large_matrix_are_read_without_the_rest(write_raw: Any, entry: Any) -> None:
    rows, columns = 2**20, 2**10
    header = {"w": entry(0, rows * columns * 4, [rows, columns])}
    path = write_raw(header)
    with path.open("r+b") as file:
        start = path.stat().st_size
        file.truncate(start + rows * columns * 4)  # 4 GiB, sparse
        file.seek(start + 7 * columns * 4)
        file.write(np.float32(1.5).tobytes())
    with open_weights(path) as weights:
        part = weights.read_rows("w", 6, 9)
        assert part.shape == (3, columns)
        assert part[1, 0] == 1.5
        assert part.sum() == 1.5


def test_46_shapes_that_differ_are_skipped_and_never_broadcast(write_model: Any) -> None:
    same = {f"{i}.weight": torch.ones(2, 2) for i in range(3)}
    pairing = paired(
        write_model,
        same | {"x.weight": torch.ones(1, 4), "b": torch.ones(1)},
        same | {"x.weight": torch.ones(4, 4), "b": torch.ones(4)},
    )
    assert [match.name for match in pairing.matches] == ["0", "1", "2"]
    assert pairing.skipped == {
        "x": "shape [1, 4] before, [4, 4] after",
        "b": "shape [1] before, [4] after",
    }
