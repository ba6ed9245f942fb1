"""Updates are records with a module path, and are read from disk."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lowrank_study.checkpoints import SourceFile, open_adapter, open_weights, pair, save_adapter
from lowrank_study.errors import InputError
from lowrank_study.spectra.adapter_updates import updates_of_adapter
from lowrank_study.spectra.spectrum import measure
from lowrank_study.spectra.tables import row
from lowrank_study.spectra.updates import (
    DenseUpdate,
    FactoredUpdate,
    layer_of,
    role_of,
    update_of_match,
)

ONES = np.ones((3, 2))


PLACE = {
    "name": "layer.0.q",
    "layer": 0,
    "role": "q",
    "storage_dtype": "float32",
    "W0_OI": None,
}


def dense(**changes):
    return DenseUpdate(**(PLACE | changes))


def factored(**changes):
    return FactoredUpdate(**(PLACE | {"scaling": 1.0} | changes))


def read_pair(before, after, roles):
    with open_weights(before) as first, open_weights(after) as second:
        matrices = pair(first, second).read_matrices()
        return [update_of_match(*each, roles=roles) for each in matrices]


def test_both_forms_know_their_shape_and_their_matrix():
    assert dense(delta_OI=ONES).shape == (3, 2)
    assert dense(delta_OI=ONES).dense() is ONES
    product = factored(B_OR=np.ones((5, 2)), A_RI=np.ones((2, 7)), scaling=0.5)
    assert product.shape == (5, 7)
    np.testing.assert_array_equal(product.dense(), np.ones((5, 7)))
    assert product.frobenius_norm() == pytest.approx(
        dense(delta_OI=product.dense()).frobenius_norm()
    )


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (factored, {"B_OR": ONES, "A_RI": ONES}, "do not multiply"),
        (dense, {"delta_OI": ONES, "W0_OI": ONES.T}, "same matrix"),
        (factored, {"B_OR": ONES, "A_RI": ONES.T, "W0_OI": ONES}, "same matrix"),
        (dense, {"delta_OI": np.ones(3)}, "both sides at least 1"),
        (dense, {"delta_OI": np.ones((0, 3))}, "both sides at least 1"),
        (factored, {"B_OR": np.ones((3, 0)), "A_RI": np.ones((0, 3))}, "both sides at least 1"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(make, changes, message):
    with pytest.raises(InputError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    ("name", "layer", "role"),
    [
        ("bert.encoder.layer.11.attention.self.query", 11, "attention.self.query"),
        ("bert.encoder.layer.0.output.dense", 0, "output.dense"),
        ("model.layers.3.mlp.up_proj", 3, "mlp.up_proj"),
        ("transformer.h.7.attn.c_attn.query", 7, "attn.c_attn.query"),
        ("model.layers.2.mlp.experts.gate_up_proj.5", 2, "mlp.experts.gate_up_proj"),
        ("model.layers.2.mlp.experts.5.up_proj", 2, "mlp.experts.up_proj"),
        ("classifier", None, "classifier"),
        ("embeddings.word_embeddings", None, "word_embeddings"),
        ("classifier.0", 0, "classifier"),
    ],
)
def test_layer_and_role_are_read_from_the_path(name, layer, role):
    assert layer_of(name) == layer
    assert role_of(name) == role


def model(folder, tensors, **config):
    folder.mkdir(exist_ok=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"} | config))
    return folder


@pytest.fixture
def base_tensors():
    random = torch.Generator().manual_seed(0)
    return {
        "encoder.layer.0.query.weight": torch.randn(6, 4, generator=random),
        "encoder.layer.1.output.weight": torch.randn(4, 6, generator=random),
        "encoder.layer.1.norm.weight": torch.randn(4, generator=random),
    }


def test_updates_of_a_pair(tmp_path, base_tensors):
    random = torch.Generator().manual_seed(1)
    tuned = {k: v + 1e-3 * torch.randn(v.shape, generator=random) for k, v in base_tensors.items()}
    folders = model(tmp_path / "before", base_tensors), model(tmp_path / "after", tuned)
    updates = read_pair(*folders, roles={"layer.0.query": "q", "y": "y"})
    assert [(u.name, u.layer, u.role) for u in updates] == [
        ("encoder.layer.0.query", 0, "q"),
        ("encoder.layer.1.output", 1, "output"),
    ]
    for one in updates:
        W0, W = (t[f"{one.name}.weight"].double().numpy() for t in (base_tensors, tuned))
        # Exact: the difference of two float32 numbers isn't one itself.
        np.testing.assert_array_equal(one.delta_OI, W - W0)
        np.testing.assert_array_equal(one.W0_OI, W0)
        assert one.storage_dtype == "float32"


def test_sixteen_bits_are_found_behind_a_float32_file(tmp_path, base_tensors):
    tuned = {k: (v * 1.01).bfloat16().float() for k, v in base_tensors.items()}
    folders = model(tmp_path / "before", base_tensors), model(tmp_path / "after", tuned)
    updates = read_pair(*folders, roles={})
    assert {one.storage_dtype for one in updates} == {"bfloat16"}


def test_fused_attention_gives_three_updates(tmp_path):
    W0 = {"h.0.attn.c_attn.weight": torch.randn(4, 12), "h.0.attn.c_proj.weight": torch.eye(4)}
    W = {k: v + torch.arange(v.numel()).reshape(v.shape) for k, v in W0.items()}
    before = model(tmp_path / "before", W0, model_type="gpt2")
    after = model(tmp_path / "after", W, model_type="gpt2")
    updates = {u.name: u for u in read_pair(before, after, roles={"query": "query"})}
    assert list(updates) == [
        *(f"h.0.attn.c_attn.{part}" for part in ("query", "key", "value")),
        "h.0.attn.c_proj",
    ]
    assert updates["h.0.attn.c_attn.query"].role == "query"
    delta = (W["h.0.attn.c_attn.weight"].double() - W0["h.0.attn.c_attn.weight"].double()).numpy()
    np.testing.assert_array_equal(updates["h.0.attn.c_attn.key"].delta_OI, delta[:, 4:8].T)


@pytest.fixture
def adapter_folder(tmp_path, base_tensors):
    random = torch.Generator().manual_seed(2)
    save_adapter(
        tmp_path / "adapter",
        factors={
            "encoder.layer.0.query": (
                torch.randn(2, 4, generator=random),
                torch.randn(6, 2, generator=random),
            )
        },
        saved_modules={
            "encoder.layer.1.output.weight": base_tensors["encoder.layer.1.output.weight"] + 1.1,
            "encoder.layer.1.norm.weight": torch.zeros(4),
            "classifier.weight": torch.ones(3, 4),
        },
        modules_to_save=["encoder.layer.1.output", "encoder.layer.1.norm", "classifier"],
        rank=2,
        alpha=8.0,
        use_rslora=False,
        dropout=0.0,
        target_modules=["query"],
        base_model_name="base",
        task_type=None,
    )
    return tmp_path / "adapter"


def test_updates_of_an_adapter_alone(adapter_folder):
    skipped = {}
    with open_adapter(adapter_folder) as adapter:
        (one,) = updates_of_adapter(adapter, base=None, roles={}, skipped=skipped)
        B, A, scaling, _ = adapter.factors("encoder.layer.0.query")
    assert (one.name, one.layer, one.role) == ("encoder.layer.0.query", 0, "query")
    assert one.scaling == scaling == 4.0
    assert one.W0_OI is None
    np.testing.assert_array_equal(one.B_OR, B)
    np.testing.assert_array_equal(one.A_RI, A)
    assert set(skipped) == {"encoder.layer.1.output", "encoder.layer.1.norm", "classifier"}
    assert row(measure(one, method="gram"))["numerical_rank"] == 2


def test_updates_of_an_adapter_on_its_base(adapter_folder, tmp_path, base_tensors):
    skipped = {}
    with (
        open_adapter(adapter_folder) as adapter,
        open_weights(model(tmp_path / "base", base_tensors)) as base,
    ):
        first, second = updates_of_adapter(adapter, base=base, roles={}, skipped=skipped)
    np.testing.assert_array_equal(
        first.W0_OI, base_tensors["encoder.layer.0.query.weight"].double().numpy()
    )
    W0 = base_tensors["encoder.layer.1.output.weight"]
    assert (second.name, second.role) == ("encoder.layer.1.output", "output")
    assert second.storage_dtype == "float32"
    np.testing.assert_array_equal(second.delta_OI, ((W0 + 1.1).double() - W0.double()).numpy())
    assert skipped == {
        "encoder.layer.1.norm": "not a matrix: shape [4]",
        "classifier": "trained in full, with no W0 to compare with",
    }


def test_files_are_opened_once(adapter_folder, tmp_path, base_tensors, monkeypatch):
    with (
        open_adapter(adapter_folder) as adapter,
        open_weights(model(tmp_path / "base", base_tensors)) as base,
    ):

        def opened_again(*_, **__):
            raise AssertionError("a file is opened that is open already")

        monkeypatch.setattr(SourceFile, "open", opened_again)
        updates = list(updates_of_adapter(adapter, base=base, roles={}, skipped={}))
    assert [one.storage_dtype for one in updates] == ["float32", "float32"]


def test_an_adapter_on_fused_attention_gives_three_updates(tmp_path):
    random = torch.Generator().manual_seed(3)
    A, B = torch.randn(2, 4, generator=random), torch.randn(12, 2, generator=random)
    W0 = torch.randn(4, 12, generator=random)
    save_adapter(
        tmp_path / "adapter",
        factors={"h.0.attn.c_attn": (A, B)},
        saved_modules={},
        modules_to_save=[],
        rank=2,
        alpha=2.0,
        use_rslora=False,
        dropout=0.0,
        target_modules=["c_attn"],
        base_model_name="base",
        task_type=None,
        fan_in_fan_out=True,
    )
    folder = model(tmp_path / "base", {"h.0.attn.c_attn.weight": W0}, model_type="gpt2")
    with open_adapter(tmp_path / "adapter") as adapter, open_weights(folder) as base:
        updates = list(updates_of_adapter(adapter, base=base, roles={}, skipped={}))
        (fused,) = updates_of_adapter(adapter, base=None, roles={}, skipped={})
    assert fused.shape == (12, 4)
    assert [u.role for u in updates] == [f"attn.c_attn.{p}" for p in ("query", "key", "value")]
    for position, one in enumerate(updates):
        rows = slice(4 * position, 4 * position + 4)
        np.testing.assert_array_equal(one.B_OR, B.numpy()[rows])
        np.testing.assert_array_equal(one.W0_OI, W0.double().numpy().T[rows])


def saved(folder, weights, settings=None):
    """Write an adapter of tensors trained in full only."""
    save_adapter(
        folder,
        factors={},
        saved_modules=weights,
        modules_to_save=[],
        rank=2,
        alpha=2.0,
        use_rslora=False,
        dropout=0.0,
        target_modules=["query"],
        base_model_name="base",
        task_type=None,
    )
    return folder


@pytest.mark.parametrize(("before", "after"), [(7, 9), (9, 7)])
def test_common_rows_of_a_resized_vocabulary_are_compared(tmp_path, before, after):
    W0, W = torch.randn(before, 4), torch.randn(after, 4)
    base = model(tmp_path / "base", {"embed_tokens.weight": W0, "a.weight": torch.eye(4)})
    folder = saved(tmp_path / "adapter", {"embed_tokens.weight": W})
    skipped = {}
    with open_adapter(folder) as adapter, open_weights(base) as weights:
        assert adapter.extra_rows("embed_tokens.weight", weights) == after - before
        (one,) = updates_of_adapter(adapter, base=weights, roles={}, skipped=skipped)
    np.testing.assert_array_equal(one.delta_OI, (W[:7].double() - W0[:7].double()).numpy())
    np.testing.assert_array_equal(one.W0_OI, W0[:7].numpy())
    assert skipped == {}


def test_a_saved_weight_of_another_shape_is_left_out_with_the_reason(tmp_path):
    base = {"a.weight": torch.eye(4), "head.weight": torch.ones(2, 4), "head.bias": torch.ones(2)}
    weights = {
        "a.weight": 2 * torch.eye(4),
        "head.weight": torch.ones(3, 4),
        "head.bias": torch.ones(3),
    }
    skipped = {}
    folder = saved(tmp_path / "adapter", weights)
    with open_adapter(folder) as adapter, open_weights(model(tmp_path / "base", base)) as opened:
        updates = list(updates_of_adapter(adapter, base=opened, roles={}, skipped=skipped))
    assert [one.name for one in updates] == ["a"]
    assert skipped == {
        "head": "shape [2, 4] in the base, [3, 4] here",
        "head.bias": "shape [2] in the base, [3] here",
    }


def test_saved_weights_come_as_the_matrices_of_the_base(tmp_path):
    """Experts one by one, a convolution by its documented reshape, fused attention in three."""
    tensors = {
        "h.0.attn.c_attn.weight": torch.randn(4, 12),
        "h.0.conv.weight": torch.randn(5, 3, 2, 2),
        "h.0.mlp.experts.up": torch.randn(2, 5, 4),
    }
    tuned = {name: tensor + torch.rand(tensor.shape) for name, tensor in tensors.items()}
    base = model(tmp_path / "base", tensors, model_type="gpt2")
    after = model(tmp_path / "after", tuned, model_type="gpt2")
    expected = {u.name: u for u in read_pair(base, after, roles={})}
    with open_weights(base) as before, open_adapter(saved(tmp_path / "adapter", tuned)) as adapter:
        updates = updates_of_adapter(adapter, base=before, roles={}, skipped={})
        found = {u.name: u for u in updates}
    assert len(found) == 6
    assert found.keys() == expected.keys()
    for name, one in found.items():
        np.testing.assert_array_equal(one.delta_OI, expected[name].delta_OI)
        np.testing.assert_array_equal(one.W0_OI, expected[name].W0_OI)
