"""Simulate the trials of a sweep that have not ended, to forecast how many it will need.

Losses on validation are drawn like those of the recorded sweeps. For a learning rate,

    loss ∝ exp(CURVATURE * ln(rate / best)**2)
    ln(best / configured) = OFFSET + BETWEEN * x + WITHIN * y

where x is drawn from the standard normal distribution for each family (`race.py`), and y for each
configuration and seed. The curve of a trial is flat: at all steps its loss is in the same ratio to
that of another rate.

`benchmarks/racing.py` computes the four constants from the trials of the grids in
`results/records/`. `tests/benchmarks/test_racing.py` checks that they are up to date.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowrank_study.runs.store import TrainedRun
from lowrank_study.spec import RunSpec
from lowrank_study.sweeps.race import family_name
from lowrank_study.sweeps.trials import at_any_rate

CURVATURE = 0.12
OFFSET = 0.34
BETWEEN = 0.85
WITHIN = 0.41


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedTrials:
    """Stands in for trials that have not ended."""

    draw: int
    """Seed of the simulation."""
    configured: Mapping[str, float]
    """Name of a configuration (`at_any_rate`) → its configured rate."""

    def results(
        self, trials: Sequence[RunSpec], ended: Mapping[str, TrainedRun]
    ) -> list[TrainedRun]:
        """Return the results of trials, by run id if they have ended, else simulated.

        A simulated trial copies the record of an ended one of its configuration, if there is one,
        rather with the same seed or else with the same rate. Its losses are multiplied by the ratio
        that is simulated.
        """
        done: dict[str, list[TrainedRun]] = {}
        for run in ended.values():
            if run.status == "done":
                done.setdefault(at_any_rate(run.spec).run_id, []).append(run)
        return [
            ended.get(trial.run_id)
            or self._simulated(trial, done.get(at_any_rate(trial).run_id, []))
            for trial in trials
        ]

    def _simulated(self, trial: RunSpec, others: Sequence[TrainedRun]) -> TrainedRun:
        def likeness(other: RunSpec) -> tuple[bool, bool]:
            same_rate = other.method.learning_rate == trial.method.learning_rate
            return other.seed == trial.seed, same_rate

        log_ratio, metric = self._log_loss(trial), trial.task.metric
        validation: Mapping[str, Any] = {metric.name: 0.0, "loss": 1.0}
        curve: Sequence[Mapping[str, float]] = [
            {"step": step + 1.0, "loss": 1.0} for step in range(trial.train.evaluations)
        ]
        if others:
            other = max(others, key=lambda run: likeness(run.spec))
            log_ratio -= self._log_loss(other.spec)
            validation, curve = other.record["validation"], other.record.get("curve", curve)
        ratio, score = math.exp(log_ratio), validation[metric.name]
        record = {
            "validation": {
                metric.name: score + metric.worth(-log_ratio),
                "loss": validation["loss"] * ratio,
            },
            "curve": [{**point, "loss": point["loss"] * ratio} for point in curve],
        }
        return TrainedRun(spec=trial, status="done", record=record, folder=Path())

    def _log_loss(self, trial: RunSpec) -> float:
        """Return the logarithm of a trial's loss, relative to the loss at the best rate."""
        name, family = at_any_rate(trial).run_id, family_name(at_any_rate(trial))
        best = math.log(self.configured[name]) + OFFSET
        best += BETWEEN * self._normal(family) + WITHIN * self._normal(name, trial.seed)
        return CURVATURE * (math.log(trial.method.learning_rate) - best) ** 2

    def _normal(self, *names: object) -> float:
        """Return a draw from the standard normal distribution, always the same for the names."""
        return random.Random(f"{self.draw} {names}").gauss(0.0, 1.0)
