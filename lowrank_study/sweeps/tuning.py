"""Choose the learning rate of every configuration on validation, by a grid or by a race.

    tuned(specs, tuning, train=lambda trials, limits: sweep(trials, name="rates", limits=limits))

Every configuration gets the same treatment: the same steps, texts, seeds and rules.
"""

from collections.abc import Mapping, Sequence

from lowrank_study.config.tuning import Race, Tuning
from lowrank_study.errors import InputError
from lowrank_study.runs.limits import Limits
from lowrank_study.runs.store import TrainedRun
from lowrank_study.spec import RunSpec
from lowrank_study.sweeps.grid import grid_rates
from lowrank_study.sweeps.race import race_rates
from lowrank_study.sweeps.trials import Train, at, configuration


def tuned(specs: Sequence[RunSpec], tuning: Tuning, *, train: Train) -> list[RunSpec]:
    """Return the runs, each at the rate that is best for its configuration on validation.

    Args:
        specs: The runs; their rate is the middle of the grid, or where the race starts.
        train: See `Train`. It is called with all trials so far, and again with more of them.

    Raises:
        InputError: A seed is used for tuning and for reporting, two runs differ only in their rate,
            a trial failed for another reason than its rate, or every rate of a configuration
            diverged.
    """
    if shared := {spec.seed for spec in specs} & {*tuning.every_seed}:
        names = "tuning.seeds" if isinstance(tuning, Race) else "tuning.seeds and final_seeds"
        raise InputError(
            f"tuning: seeds {sorted(shared)} choose rates and are seeds of the sweep too: give "
            f"{names} that the sweep does not use"
        )
    configurations = {of.run_id: of for of in map(configuration, specs)}
    if len({at(of, 1.0).run_id for of in configurations.values()}) < len(configurations):
        raise InputError(
            "tuning: the sweep has several learning rates for one configuration, but tuning "
            "chooses the rate: give one method.learning_rate, from which it starts"
        )

    def checked(trials: Sequence[RunSpec], limits: Mapping[str, Limits]) -> Sequence[TrainedRun]:
        runs = train(trials, limits)
        for run in runs:
            if run.status == "stopped" and not run.is_final(limits.get(run.spec.run_id, {})):
                raise InputError(
                    f"{run.spec.run_id}, a trial of a learning rate, was stopped by another "
                    "command with other settings of tuning: rerun to resume"
                )
            if run.status == "failed":  # this says nothing about the rate
                raise InputError(
                    f"{run.spec.run_id}, a trial of a learning rate, failed "
                    f"({run.record['message']}): fix this and rerun to resume"
                )
        return runs

    if isinstance(tuning, Race):
        rates = race_rates(configurations, tuning, train=checked)
    else:
        rates = grid_rates(configurations, tuning, train=checked)
    return [at(spec, rates[configuration(spec).run_id]) for spec in specs]


def replayed(
    specs: Sequence[RunSpec], tuning: Tuning, trials: Sequence[TrainedRun]
) -> list[RunSpec]:
    """Return the runs at the rates that `tuned` chose, from the results of the trials alone.

    Raises:
        InputError: A trial is missing, or see `tuned`.
    """
    ended = {run.spec.run_id: run for run in trials}

    def stored(asked: Sequence[RunSpec], limits: Mapping[str, Limits]) -> list[TrainedRun]:
        if missing := [spec.run_id for spec in asked if spec.run_id not in ended]:
            raise InputError(f"{missing[0]}: this trial has not ended: run the sweep first")
        return [ended[spec.run_id] for spec in asked]

    return tuned(specs, tuning, train=stored)
