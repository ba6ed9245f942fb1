"""Compare the counted cost of runs with the operations that torch counts."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lowrank_study.config.run import compose
from lowrank_study.data.splits import load_splits
from lowrank_study.methods.full import FullFineTuning
from lowrank_study.spec import RunSpec
from lowrank_study.sweeps.effort import Effort
from lowrank_study.training.batches import extreme_texts, training_batches
from lowrank_study.training.fit import backward
from lowrank_study.training.models import build_model
from lowrank_study.training.packing import Pack


def counted(spec: RunSpec, source: Path) -> int:
    """Train one epoch without evaluation, and let torch count its matrix products."""
    splits = load_splits(spec.task, source)
    model = build_model(spec, source, number_of_labels=len(splits.labels))
    sample = extreme_texts([splits.train], 4)
    cpu = torch.device("cpu")
    pack = Pack([model], device=cpu, pad_id=0, sample=sample, reference=True)
    with FlopCounterMode(display=False) as counter:
        for batch in training_batches(splits.train, batch_size=1, epochs=1, seed=0):
            backward(pack, batch, spec, torch.device("cpu"))
    return int(counter.get_total_flops())


def test_full_fine_tuning_costs_what_torch_counts(
    tiny_overrides: list[str], tiny_model: Callable[[str], Path]
) -> None:
    source = tiny_model("gpt2")
    overrides = [*tiny_overrides, "model=gpt2", f"model.source={source}", "method=full"]
    once, twice = (compose(*overrides, f"trainer.epochs={epochs}") for epochs in (1, 2))
    an_epoch = Effort().of(twice) - Effort().of(once)
    assert an_epoch == pytest.approx(counted(once, source), rel=0.2)


def test_the_cost_of_factors_depends_on_rank_and_maps(tiny_overrides: list[str]) -> None:
    effort = Effort()

    def of(*overrides: str) -> float:
        return effort.of(compose(*tiny_overrides, *overrides))

    steps = [of(f"method.rank={rank}") for rank in (1, 2, 3)]
    assert steps[2] - steps[1] == pytest.approx(steps[1] - steps[0])
    assert steps[1] > steps[0]
    assert of("method.rank=2", "method.target=all_linear") > of("method.rank=2")
    assert of("method.rank=2", "trainer.read_test=false") < of("method.rank=2")


def test_another_adapter_on_the_same_maps_changes_nothing(tiny_overrides: list[str]) -> None:
    lora = compose(*tiny_overrides, "method.rank=2")
    other = compose(*tiny_overrides, "method=peft", "method.peft_type=LOHA")
    assert not isinstance(lora.method, FullFineTuning)
    assert not isinstance(other.method, FullFineTuning)
    assert other.method.target == lora.method.target
    effort = Effort()
    effort.of(other)
    assert effort.of(lora) == Effort().of(lora)


def test_the_head_has_an_output_for_each_label(tiny_overrides: list[str], tmp_path: Path) -> None:
    words = ("bad", "fair", "good", "great")
    rows = [f"a {words[k % 4]} film number {k},{words[k % 4]}" for k in range(200)]
    file = tmp_path / "four.csv"
    file.write_text("\n".join(["text,label", *rows]))
    two = compose(*tiny_overrides, "method.rank=2")
    four = compose(
        *tiny_overrides,
        "method.rank=2",
        f"task.source={file}",
        "task.label_column=label",
        "task.group_column=null",
    )
    effort = Effort()
    assert effort.a_token(four)[1] > effort.a_token(two)[1]


def test_a_linear_probe_costs_the_forward_pass(tiny_overrides: list[str]) -> None:
    def cost(*overrides: str) -> float:
        return Effort().of(compose(*tiny_overrides, *overrides))

    head, full = cost("method=head"), cost("method=full")
    assert head < cost("method.rank=1")
    assert head < full < 3 * head  # evaluation costs both the same
