"""Patterns of an adapter_config.json are matched in bounded time."""

from typing import Any

import pytest
import torch

from lowrank_study.checkpoints import open_adapter
from tests.checkpoints.conftest import PLAIN, two_factors

pytestmark = [
    # PEFT's own remarks about models that have no config
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    pytest.mark.filterwarnings("ignore:.*save_embedding_layers.*"),
]


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+b",
        "a*a*a*a*a*[b]",
        "(a|a)" * 40 + "b",
        "a?" * 40 + "a" * 40,
        "(.*)*x",
        "(?=a)a",
        r"(a)\1",
        "(((a{0,99}){0,99}){0,99}){0,99}",
        "x" * 501,
    ],
)
def test_a_pattern_that_takes_years_to_match_is_refused(
    write_adapter: Any, refused_in_budget: Any, pattern: str
) -> None:
    module = "a" * 60
    path = write_adapter(two_factors(module), PLAIN | {"rank_pattern": {pattern: 3}})
    assert "could take too long to match" in refused_in_budget(path, "open_adapter")


def test_many_patterns_are_refused_in_time(write_adapter: Any, refused_in_budget: Any) -> None:
    patterns = {f"a*b*c{i}": 3 for i in range(200_000)}
    path = write_adapter(two_factors(), PLAIN | {"rank_pattern": patterns})
    assert "is not a table of at most 10000 patterns" in refused_in_budget(path, "open_adapter")
    patterns = {f"[a-c]*b*{i}[a-c]": 3 for i in range(9_000)}
    tensors: dict[str, torch.Tensor] = {}
    for i in range(300):
        tensors |= two_factors(f"layers.{i}.abc")
    path = write_adapter(tensors, PLAIN | {"rank_pattern": patterns}, folder="more")
    assert "could take too long" in refused_in_budget(path, "open_adapter")


def test_one_pattern_a_module_is_quick(write_adapter: Any) -> None:
    modules = [f"model.layers.{i}.self_attn.{part}_proj" for i in range(150) for part in "qkvo"]
    tensors: dict[str, torch.Tensor] = {}
    for module in modules:
        tensors |= two_factors(module)
    path = write_adapter(tensors, PLAIN | {"alpha_pattern": dict.fromkeys(modules, 8)})
    with open_adapter(path) as adapter:
        assert {adapter.factors(module).scaling for module in modules} == {4.0}
