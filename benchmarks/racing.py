"""Compare the race for learning rates with the grid, on the sweeps that were recorded.

python benchmarks/racing.py              # replay both on the recorded trials: two minutes
python benchmarks/racing.py --train 3    # also train the races of three more families; resumable

The recorded trials have no curves, so a replayed race stops none. The races that are trained here
show how many steps stopping saves, and what it changes. The recorded trials also give the constants
of the races that a forecast simulates (`trial_losses.py`), and the trained races check them.
"""

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import timing
from trial_losses import Losses, constants

from lowrank_study.answers.statistics import interval_of_mean
from lowrank_study.config.grids import planned_configs
from lowrank_study.config.run import composed, read_config
from lowrank_study.config.tuning import Race, Tuning
from lowrank_study.errors import InputError
from lowrank_study.results import runs_folder
from lowrank_study.runs.limits import Limits, first_above
from lowrank_study.runs.store import RunStore, TrainedRun
from lowrank_study.spec import RunSpec
from lowrank_study.sweeps.plan import plan_sweep
from lowrank_study.sweeps.progress import Display
from lowrank_study.sweeps.race import families, family_name
from lowrank_study.sweeps.simulated import SimulatedTrials
from lowrank_study.sweeps.sweep import carry_out
from lowrank_study.sweeps.trials import Train, at_any_rate, configuration
from lowrank_study.sweeps.tuning import tuned

HERE = Path(__file__).parent
RECORDS = HERE.parent / "results" / "records"
TRAINED = ("flagship_newsgroups", "flagship_reuters_r52", "flagship_rotten_tomatoes")
"""Sweeps whose races are trained, one family after the other."""
ONE_SIDED = 0.90
"""Confidence of the two-sided interval whose ends are one-sided 95 % limits."""
SIMULATED = 20
"""Number of simulations of each race."""
KEY = ("method", "target", "adapter_rank", "alpha", "scaling_rule", "learning_rate", "seed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """The rates that the grid and the race choose for one configuration."""

    sweep: str
    run: str
    """Name of the configuration."""
    how: str
    """`replayed` on recorded trials, or `trained` here."""
    grid_rate: float
    race_rate: float
    seeds: int
    """Number of recorded seeds that have both rates."""
    difference: float
    """Mean recorded validation score at the race's rate less that at the grid's."""
    upper_95: float
    """One-sided 95 % limit of the difference, paired by seed."""
    verdict: str
    """`same`, `not worse` (the limit is at least 0), `worse`, or `not tested`."""
    grid_trials: float
    """Trials of the grid for the whole family, divided by its members."""
    race_trials: float
    """Steps of the race in whole trials, divided in the same way."""
    simulated_trials: float
    """Mean of this over simulated races."""


class Recorded:
    """The trials of a recorded sweep."""

    def __init__(self, name: str, file: Path) -> None:
        self.name = name
        configs = planned_configs(f"experiment={name}")
        self.configurations = {of.run_id: of for of in (configuration(c.spec) for c in configs)}
        rows = pd.read_csv(file)
        rows = rows.astype(object).where(rows.notna(), None).to_dict("records")
        self._rows = {tuple(row[name] for name in KEY): row for row in rows}

    def trained(self, trial: RunSpec) -> TrainedRun:
        """Return the result of a trial; one that the grid did not need loses."""
        row = self._rows.get((*_key(trial), trial.method.learning_rate, trial.seed), {})
        measured = {
            "loss": row.get("validation_loss", math.inf),
            "accuracy": row.get("validation_score", 0.0),
        }
        record = {"validation": measured, "curve": [{"step": 1, **measured}]}
        return TrainedRun(spec=trial, status="done", record=record, folder=Path())

    def blocks(self) -> Iterator[tuple[str, str, int, Losses]]:
        """Yield family, configuration, seed, and the loss by rate, relative to the configured."""
        for name, of in self.configurations.items():
            start, found = of.method.learning_rate, dict[int, dict[float, float]]()
            for (*key, rate, seed), row in self._rows.items():
                if (*key,) == _key(of) and row["validation_loss"] is not None:
                    found.setdefault(seed, {})[rate / start] = row["validation_loss"]
            for seed, losses in found.items():
                yield f"{self.name} {family_name(of)}", name, seed, losses

    def difference(self, of: RunSpec, rate: float, other: float) -> npt.NDArray[np.float64]:
        """Return the scores at a rate less those at another, over the seeds that have both."""
        first, second = (
            {key[-1]: row["validation_score"] for key, row in self._rows.items() if key[:-1] == at}
            for at in ((*_key(of), rate), (*_key(of), other))
        )
        return np.array([first[seed] - second[seed] for seed in first if seed in second])


def recorded_sweeps() -> list[Recorded]:
    """Return all sweeps with recorded trials of a grid; those of a race were stopped early."""
    return [
        Recorded(file.parents[1].name.partition("_")[2], file)
        for file in sorted(RECORDS.glob("*/tables/trials.csv"))
        if "stopped" not in set(pd.read_csv(file, usecols=["status"])["status"])
    ]


def _key(spec: RunSpec) -> tuple[Any, ...]:
    method = spec.method
    rules = (method.lora.alpha, method.lora.scaling_rule) if method.lora else (None, None)
    return method.label, method.target_label, method.adapter_rank, *rules


def choice(members: Sequence[RunSpec], tuning: Tuning, results: Train) -> tuple[list[float], float]:
    """Return the chosen rates, and the steps of all trials in units of the longest one."""
    steps: dict[str, float] = {}

    def train(trials: Sequence[RunSpec], limits: Mapping[str, Limits]) -> Sequence[TrainedRun]:
        runs = results(trials, limits)
        for run in runs:
            curve = run.record["curve"]
            last = first_above(curve, limits.get(run.spec.run_id, {})) or curve[-1]
            steps[run.spec.run_id] = last["step"]
        return runs

    rates = [spec.method.learning_rate for spec in tuned(members, tuning, train=train)]
    return rates, sum(steps.values()) / max(steps.values())


def simulated_trials(members: Sequence[RunSpec], race: Race) -> float:
    """Return the mean steps of simulated races, in units of the longest trial."""
    configured = {at_any_rate(of).run_id: of.method.learning_rate for of in members}

    def trials(draw: int) -> float:
        simulation = SimulatedTrials(draw=draw, configured=configured)
        return choice(members, race, lambda asked, limits: simulation.results(asked, {}))[1]

    return sum(map(trials, range(SIMULATED))) / SIMULATED


class Races:
    """The races that are trained in a results folder."""

    def __init__(self, folder: Path, curves: Path, to_train: int) -> None:
        self._folder, self._to_train = folder, to_train
        self._store = RunStore(runs_folder(folder))
        rows = pd.read_csv(curves) if curves.is_file() else pd.DataFrame(columns=["run_id"])
        self._curves = {str(name): points for name, points in rows.groupby("run_id", sort=False)}

    def choice(self, members: Sequence[RunSpec], race: Race) -> tuple[list[float], float] | None:
        """Return the result of a race, which is trained if it may be; None if it isn't."""
        try:
            return choice(members, race, self._ended)
        except InputError:
            if not self._to_train:
                return None
        self._to_train -= 1
        return choice(members, race, self._train)

    def curves(self) -> Iterator[dict[str, Any]]:
        """Yield the evaluations of all trials that were trained, in another call or in this one."""
        for points in self._curves.values():
            yield from points.to_dict("records")
        names = sorted(path.parent.name for path in self._store.folder.glob("*/record.json"))
        for run in self._store.ended([name for name in names if name not in self._curves]):
            for point in run.record["curve"]:
                yield {"run_id": run.spec.run_id, "status": run.status, **point}

    def _ended(self, trials: Sequence[RunSpec], limits: Mapping[str, Limits]) -> list[TrainedRun]:
        return [self._recorded(trial) or self._store.load(trial.run_id) for trial in trials]

    def _recorded(self, trial: RunSpec) -> TrainedRun | None:
        """Return a trial with the curve that an earlier call has written."""
        if (points := self._curves.get(trial.run_id)) is None:
            return None
        curve = points.drop(columns=["run_id", "status"]).to_dict("records")
        record = {"validation": curve[-1], "curve": curve}
        return TrainedRun(spec=trial, status=points["status"].iloc[0], record=record, folder=Path())

    def _train(self, trials: Sequence[RunSpec], limits: Mapping[str, Limits]) -> list[TrainedRun]:
        planned = plan_sweep(
            trials,
            name="racing",
            results=self._folder,
            question="",
            device="auto",
            launcher="inline",
            workers=1,
            pack=None,
            allow_partial=False,
            limits=limits,
        )
        with Display() as display:
            return carry_out(planned, "none", display, None)


def cases(sweep: Recorded, grid: Tuning, race: Race, races: Races | None) -> Iterator[Case]:
    """Yield the configurations of a sweep, with the replayed race and the trained one."""

    def recorded(trials: Sequence[RunSpec], limits: Mapping[str, Limits]) -> list[TrainedRun]:
        return [sweep.trained(trial) for trial in trials]

    for family in families(sweep.configurations):
        members = [*family.values()]
        grid_rates, grid_trials = choice(members, grid, recorded)
        found = {"replayed": choice(members, race, recorded)}
        if races is not None and (trained := races.choice(members, race)):
            found["trained"] = trained
        for how, (rates, race_trials) in found.items():
            rungs = race.rungs if how == "trained" else 1  # a replay has no curves
            simulated = simulated_trials(members, replace(race, rungs=rungs))
            for of, grid_rate, race_rate in zip(members, grid_rates, rates, strict=True):
                apart = sweep.difference(of, race_rate, grid_rate)
                upper = interval_of_mean(apart, ONE_SIDED)[1]
                yield Case(
                    sweep=sweep.name,
                    run=of.method.stem,
                    how=how,
                    grid_rate=grid_rate,
                    race_rate=race_rate,
                    seeds=len(apart),
                    difference=float(apart.mean()) if len(apart) else math.nan,
                    upper_95=upper,
                    verdict=_verdict(upper, is_same=grid_rate == race_rate),
                    grid_trials=grid_trials / len(members),
                    race_trials=race_trials / len(members),
                    simulated_trials=simulated / len(members),
                )


def _verdict(upper: float, *, is_same: bool) -> str:
    if is_same:
        return "same"
    if math.isnan(upper):
        return "not tested"
    return "worse" if upper < 0.0 else "not worse"


def figures(how: str, found: Sequence[Case]) -> list[timing.Figure]:
    """Return how often the choices agree, and the steps of the race relative to the grid's."""

    def percent(*verdicts: str) -> list[float]:
        return [100.0 * sum(each.verdict in verdicts for each in found) / len(found)]

    trials = sum(each.race_trials for each in found)
    steps = trials / sum(each.grid_trials for each in found)
    simulated = sum(each.simulated_trials for each in found)
    shown = [
        timing.figure(f"{how}: configurations", [len(found)], unit=""),
        timing.figure(f"{how}: same rate as the grid's", percent("same"), unit="%"),
        timing.figure(
            f"{how}: same rate or not worse", percent("same", "not worse"), unit="%", at_least=95
        ),
        timing.figure(
            f"{how}: steps, relative to the grid's",
            [100.0 * steps],
            unit="%",
            at_most=40 if how == "trained" else None,
        ),
        timing.figure(f"{how}: steps of simulated races / the race", [simulated / trials], unit=""),
    ]
    apart = [100.0 * each.difference for each in found if each.verdict in ("worse", "not worse")]
    if apart:
        what = f"{how}: score less the grid's, mean of the cases that differ"
        mean = sum(apart) / len(apart)
        shown.append(
            timing.Figure(
                what=what,
                value=mean,
                lowest=min(apart),
                highest=max(apart),
                unit="points",
                at_least=None,
                at_most=None,
            )
        )
    return shown


def main() -> None:
    """Replay the recorded trials, train further races if asked, and write the results."""
    parser = argparse.ArgumentParser(description="Compare the race for learning rates, and grid.")
    parser.add_argument("--train", type=int, default=0, help="number of families to race now")
    parser.add_argument("--store", type=Path, default=HERE.parent / "results" / "racing")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    grid, race = (read_config(composed("config", f"tuning={k}")).tuning for k in ("grid", "race"))
    assert grid is not None
    assert isinstance(race, Race)
    races = Races(arguments.store, HERE / "results" / "racing_curves.csv", arguments.train)
    sweeps = recorded_sweeps()
    found = [
        each
        for sweep in sweeps
        for each in cases(sweep, grid, race, races if sweep.name in TRAINED else None)
    ]
    pd.DataFrame(found).to_csv(arguments.out / "racing.csv", index=False)
    if curves := [*races.curves()]:
        pd.DataFrame(curves).to_csv(arguments.out / "racing_curves.csv", index=False)
    groups = {how: [each for each in found if each.how == how] for how in ("replayed", "trained")}
    shown = {how: figures(how, group) for how, group in groups.items() if group}
    shown["simulated"] = [
        timing.figure(f"simulated: {name}", [value], unit="")
        for name, value in constants(block for sweep in sweeps for block in sweep.blocks()).items()
    ]
    timing.write_results(
        arguments.out,
        "racing",
        shown,
        provenance=timing.facts(),
    )


if __name__ == "__main__":
    main()
