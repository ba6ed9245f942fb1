"""Models are loaded completely, with the head and the dropout that were asked for."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lowrank_study.config.run import compose
from lowrank_study.errors import InputError
from lowrank_study.tasks.classification import Classification
from lowrank_study.training.fit import fit
from lowrank_study.training.models import build_model, load_model
from lowrank_study.training.tracking import Tracker


def test_dropout_of_the_model_is_set(tiny_model: Callable[[str], Path]) -> None:
    for family in ("bert", "roberta", "distilbert", "gpt2", "llama"):
        model = load_model(Classification, tiny_model(family), number_of_labels=2, dropout=0.0)
        model.train()
        inputs = {
            "input_ids": torch.randint(4, 40, (2, 7)),
            "attention_mask": torch.ones(2, 7).long(),
        }
        assert torch.equal(model(**inputs).logits, model(**inputs).logits), family


def test_methods_of_a_seed_start_from_the_same_head(tiny_model: Callable[[str], Path]) -> None:
    heads = []
    for method in (["method=full"], ["method.rank=2"], ["method.rank=4", "method.target=mlp"]):
        spec = compose("model=bert", "seed=7", *method)
        model = build_model(spec, tiny_model("bert"), number_of_labels=3)
        heads.append(model.get_parameter("classifier.weight").detach())
    assert torch.equal(heads[0], heads[1])
    assert torch.equal(heads[0], heads[2])
    other = build_model(compose("model=bert", "seed=8"), tiny_model("bert"), number_of_labels=3)
    assert not torch.equal(other.get_parameter("classifier.weight"), heads[0])


def test_a_model_without_its_pooler_is_refused(
    tiny_overrides: list[str], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """Under an adapter, a missing pooler would be random and frozen, and differ within a pack."""
    lacking = tmp_path / "lacking"
    shutil.copytree(tiny_model("bert"), lacking)
    weights = load_file(lacking / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
    save_file(kept, lacking / "model.safetensors", metadata={"format": "pt"})
    spec = compose(*tiny_overrides, f"model.source={lacking}")
    with pytest.raises(InputError, match=r"lacks bert\.pooler\.dense\.bias, which would be random"):
        fit(spec, checkpoint_folder=tmp_path, tracker=Tracker())


def test_a_classifier_of_other_classes_gets_a_new_head(
    tiny_overrides: list[str], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    old = tmp_path / "old"
    shutil.copytree(tiny_model("bert"), old)
    load_model(
        Classification, tiny_model("bert"), number_of_labels=3, dropout=None
    ).save_pretrained(old)
    spec = compose(*tiny_overrides, f"model.source={old}")
    result = fit(spec, checkpoint_folder=tmp_path / "run", tracker=Tracker())
    assert result.record["test"]["accuracy"] > 0
    saved = load_file(tmp_path / "run" / "adapter_model.safetensors")
    [head] = [saved[name] for name in saved if name.endswith("classifier.weight")]
    assert head.shape == (2, 16)


def test_weights_of_another_model_than_the_configuration_are_refused(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(tiny_model("bert"), mixed)
    config = json.loads((mixed / "config.json").read_text())
    (mixed / "config.json").write_text(json.dumps({**config, "intermediate_size": 32}))
    with pytest.raises(InputError, match=r"intermediate.*is stored as \(24,.*makes it \(32,"):
        load_model(Classification, mixed, number_of_labels=2, dropout=None)
