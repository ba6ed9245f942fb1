"""The runs of full fine-tuning at the learning rate that validation chose."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from lowrank_study.errors import InputError
from lowrank_study.results import runs_folder
from lowrank_study.runs.store import RunStore, TrainedRun
from lowrank_study.sweeps.settings import check_alike
from lowrank_study.sweeps.trials import configuration, worth


def chosen_of_sweep(sweep: str, results: Path) -> list[list[TrainedRun]]:
    """Return `chosen_full_runs` of a sweep in the store.

    Raises:
        InputError: There is no such sweep, it has no ended run of full fine-tuning, or its runs
            differ in more than method, rate and seeds.
    """
    store = RunStore(runs_folder(results))
    runs = store.ended(store.sweep(sweep))
    check_alike(runs, sweep=sweep)
    chosen = chosen_full_runs(runs)
    if not chosen:
        raise InputError(
            f"sweep={sweep}: no run of full fine-tuning that read the test split has ended; "
            "train one with method=full"
        )
    return chosen


def chosen_full_runs(runs: Sequence[TrainedRun]) -> list[list[TrainedRun]]:
    """Return the runs of full fine-tuning of each task and model, in order of their seeds.

    Validation chooses their rate (`sweeps.trials.preference`). Runs that did not read the test
    split and runs on shuffled labels are left out.
    """
    settings: dict[tuple[str, str], dict[str, list[TrainedRun]]] = defaultdict(dict)
    for run in runs:
        spec = run.spec
        full = spec.method.label == "full" and spec.train.read_test
        if full and not spec.train.shuffle_labels:
            of_setting = settings[spec.task.name, spec.model.name]
            of_setting.setdefault(configuration(spec).run_id, []).append(run)
    chosen = []
    for configurations in settings.values():
        best = max(configurations.values(), key=worth)
        done = [run for run in best if run.status == "done"]
        if done:
            chosen.append(sorted(done, key=lambda run: (run.spec.seed, run.spec.data_seed)))
    return chosen
