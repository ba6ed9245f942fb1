"""Which runs of full fine-tuning speak for a sweep: those at the rate that validation chose.

for runs in chosen_full_runs(store.ended(store.sweep("rank_sweep"))):
    runs[0].spec.task.name, [run.spec.seed for run in runs]
"""

from collections import defaultdict
from collections.abc import Sequence

from lowrank_study.runs import TrainedRun
from lowrank_study.spec import FullFineTuning
from lowrank_study.study.tuning import configuration, worth


def chosen_full_runs(runs: Sequence[TrainedRun]) -> list[list[TrainedRun]]:
    """Return the runs of full fine-tuning of each task and model, one a seed, in order of seeds.

    Of several learning rates the one that validation prefers (`study.tuning.preference`). Runs that
    did not read the test split, and those on shuffled labels, are left out.
    """
    settings: dict[tuple[str, str], dict[str, list[TrainedRun]]] = defaultdict(dict)
    for run in runs:
        spec = run.spec
        full = isinstance(spec.method, FullFineTuning) and spec.train.read_test
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
