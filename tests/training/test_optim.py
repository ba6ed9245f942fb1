"""The schedule, and the rates and weight decay of the parameters."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lowrank_study.config.run import compose
from lowrank_study.training.models import build_model
from lowrank_study.training.optim import make_optimizer


def test_the_rate_rises_and_falls_linearly() -> None:
    train = compose("trainer.warmup_fraction=0.1").train
    shares = [train.rate_share(step, 100) for step in range(100)]
    assert shares[0] == 0.1
    assert max(shares) == shares[9] == shares[10] == 1.0
    assert shares[55] == 0.5
    assert shares[99] == pytest.approx(1 / 90)
    assert np.allclose(np.diff(shares[10:]), -1 / 90)
    assert compose("trainer.warmup_fraction=0.0").train.rate_share(0, 3) == 1.0


def test_biases_and_norms_are_not_decayed(tiny_model: Callable[[str], Path]) -> None:
    spec = compose("model=bert", "method=full")
    model = build_model(spec, tiny_model("bert"), number_of_labels=2)
    groups = make_optimizer(model, spec).param_groups
    assert [group["weight_decay"] for group in groups] == [spec.train.weight_decay, 0.0]
    assert all(p.ndim > 1 for p in groups[0]["params"])
    assert all(p.ndim == 1 for p in groups[1]["params"])
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))


@pytest.mark.parametrize(
    "method", ["full", "lora", "peft method.peft_type=LOHA", "head"], ids=lambda m: m.split()[0]
)
def test_the_head_has_a_rate_of_its_own(method: str, tiny_model: Callable[[str], Path]) -> None:
    overrides = [*f"method={method}".split(), "method.learning_rate=1e-3"]
    spec = compose("model=bert", *overrides, "trainer.head_learning_rate=0.1")
    model = build_model(spec, tiny_model("bert"), number_of_labels=2)
    rates = {p: g["lr"] for g in make_optimizer(model, spec).param_groups for p in g["params"]}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert set(rates) == set(trained.values())
    in_head = {name for name in trained if "classifier" in name}
    assert in_head
    assert {rates[trained[name]] for name in in_head} == {0.1}
    assert {rates[p] for name, p in trained.items() if name not in in_head} <= {1e-3}
