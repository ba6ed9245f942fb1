"""BitFit and LayerNorm tuning: which vectors are trained, and that no matrix changes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lowrank_study.config.run import compose
from lowrank_study.errors import InputError
from lowrank_study.methods.layers.modules import in_head
from lowrank_study.training.fit import fit
from lowrank_study.training.models import build_model, load_model
from lowrank_study.training.tracking import Tracker

FAMILIES = ("bert", "gpt2", "llama")
HEADS = ("classifier", "score")


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_are_trained_and_nothing_else(family: str, tiny_model: Callable[[str], Path]) -> None:
    spec = compose("method=layernorm", f"model={family}")
    model = build_model(spec, tiny_model(family), number_of_labels=2)
    for name, parameter in model.named_parameters():
        owner = model.get_submodule(name.rpartition(".")[0])
        is_norm = type(owner).__name__.endswith("Norm")
        assert parameter.requires_grad == (
            is_norm or in_head(name, ["classifier", "score", "head"])
        )
        assert not is_norm or parameter.ndim == 1


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_biases_are_trained_and_nothing_else(
    family: str, tiny_model: Callable[[str], Path]
) -> None:
    spec = compose("method=bitfit", f"model={family}")
    model = build_model(spec, tiny_model(family), number_of_labels=2)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    biases = {name for name, p in model.named_parameters() if name.endswith(".bias")}
    assert len(biases) > 10
    assert trained - biases == {"classifier.weight" if family == "bert" else "score.weight"}
    assert biases <= trained


def test_a_model_without_biases_is_refused(tiny_model: Callable[[str], Path]) -> None:
    spec = compose("method=bitfit", "model=llama")
    with pytest.raises(InputError, match="method=bitfit trains biases, but llama has none"):
        build_model(spec, tiny_model("llama"), number_of_labels=2)


@pytest.mark.parametrize("method", ["bitfit", "layernorm"])
def test_a_run_saves_a_model_whose_matrices_are_the_base_models(
    method: str, tiny_overrides: list[str], tmp_path: Path
) -> None:
    overrides = [each for each in tiny_overrides if not each.startswith("method")]
    spec = compose(*overrides, f"method={method}", "method.learning_rate=3e-2", "trainer.epochs=4")
    result = fit(spec, checkpoint_folder=tmp_path, tracker=Tracker(), device="cpu")
    assert result.record["adapter_parameters"] > 0
    task, base = type(spec.task), Path(spec.model.source.path)  # type: ignore[union-attr]
    before = load_model(task, base, number_of_labels=2, dropout=None).state_dict()
    saved = load_file(tmp_path / "model.safetensors")
    own = {name for name in before if not name.startswith("classifier")}
    changed = {name for name in own if not torch.equal(saved[name], before[name])}
    assert all(saved[name].ndim == 1 for name in changed)
    trained = {name for name in own if "LayerNorm" in name or method == "bitfit"}
    assert changed == {name for name in trained if name.endswith(".bias") or method == "layernorm"}
    loaded = load_model(task, tmp_path, number_of_labels=2, dropout=None).state_dict()
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)
    assert "no matrix changes" in str(spec.method.why_no_updates)


@pytest.mark.slow
def test_both_fit_the_training_texts_better_than_a_linear_probe(
    real_cache: None, tmp_path: Path
) -> None:
    small = ("task.train_size=256", "task.validation_size=32", "task.test_size=32")
    rate = ("method.learning_rate=5e-3", "trainer.epochs=8", "trainer.precision=fp32")
    losses = {}
    for method in ("head", "bitfit", "layernorm"):
        spec = compose(*small, *rate, f"method={method}")
        result = fit(spec, checkpoint_folder=tmp_path / method, tracker=Tracker(), device="cpu")
        losses[method] = result.record["train"]["running_loss"]
    assert max(losses["bitfit"], losses["layernorm"]) < losses["head"] - 0.05, losses


@pytest.mark.parametrize("method", ["bitfit", "layernorm"])
def test_settings_of_adapters_are_refused(method: str) -> None:
    from lowrank_study.config.grids import planned_configs

    with pytest.raises(InputError, match=f"method={method} has no rank"):
        planned_configs(f"method={method}", "method.rank=4")
