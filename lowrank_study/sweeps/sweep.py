"""Many runs: check all of them, plan them, start workers, watch the store until they are done.

>>> sweep([compose("method.rank=4"), compose("method.rank=8")], name="two", results=Path("results"))
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from lowrank_study import assets
from lowrank_study.config.run import RunConfig, Tuning
from lowrank_study.left_out import check_left_out, in_words
from lowrank_study.machine import cores_of_workers, free_cores
from lowrank_study.results import runs_folder
from lowrank_study.runs.store import RunStore, TrainedRun
from lowrank_study.spec import Asset, RunSpec
from lowrank_study.sweeps.effort import Effort
from lowrank_study.sweeps.launch.local import run_workers
from lowrank_study.sweeps.packs import packs
from lowrank_study.sweeps.settings import check_same_rows, rows_key
from lowrank_study.sweeps.tuning import tuned

_MOST_PACKED = {"cpu": 4, "cuda": 32}
"""A processor's caches hold no more; a GPU waits less the more there is to do at once."""
_MEMORY_SHARE = 0.8


def sweep_of(configs: Sequence[RunConfig]) -> list[TrainedRun]:
    """Run the sweep of several configurations; sweep-level settings come from the first one.

    For exceptions, see `sweep`.
    """
    first = configs[0]
    return sweep(
        [config.spec for config in configs],
        name=first.sweep,
        results=first.results,
        question=first.question,
        device=first.device,
        tracker=first.tracker,
        workers=first.workers,
        pack=first.pack,
        allow_partial=first.allow_partial,
        tuning=first.tuning,
    )


def sweep(
    specs: Sequence[RunSpec],
    *,
    name: str,
    results: Path,
    question: str = "",
    device: str = "auto",
    tracker: str = "none",
    workers: int | None = None,
    pack: int | None = None,
    allow_partial: bool = False,
    tuning: Tuning | None = None,
) -> list[TrainedRun]:
    """Train every run that has not ended, measure all spectra, and return the runs in order.

    With `tuning`, rates are chosen first, by the runs of another sweep, `<name>_rates`.

    Raises
    ------
    InputError
        Any of the runs can't be: then none is planned.
    Unfinished
        No worker is left, and not all runs have ended: the same call goes on with the rest.
    """
    from lowrank_study.sweeps.updates import measure_run

    if tuning is not None:
        specs = tuned(
            specs,
            tuning,
            train=lambda trials: sweep(
                trials,
                name=rates_sweep(name),
                results=results,
                question="Which learning rate is best on validation?",
                device=device,
                tracker=tracker,
                workers=workers,
                pack=pack,
                allow_partial=allow_partial,
            ),
        )
    unique = list({spec.run_id: spec for spec in specs}.values())
    ids = [spec.run_id for spec in unique]
    store = RunStore(runs_folder(results))
    check_specs(store.left(unique), results, ended=store.ended(ids), allow_partial=allow_partial)
    places = _places(workers, device, len(unique))
    effort = Effort()
    costs = {spec.run_id: effort.of(spec) for spec in unique}
    planned = packs(
        unique,
        limit=lambda spec: _most_packed(spec, places, pack),
        workers=len(places),
        cost=lambda spec: costs[spec.run_id],
    )
    run_ids = store.plan(name, planned, question=question)
    if unique[0].train.read_test:  # runs that choose a rate are planned a few at a time
        _tell_what_was_replaced(store, name, run_ids)
    if len(store.ended(run_ids)) < len(run_ids):
        run_workers(store, costs, name, results, tracker, places[: len(planned)])
    runs = store.ended(ids)
    for run in runs:
        measure_run(run, results)
        if run.status != "done" and not run.spec.train.read_test:  # the caller reports other runs
            print(f"{run.status}: {run.spec.run_id}: {run.record['message']}", file=sys.stderr)
    return runs


def _tell_what_was_replaced(store: RunStore, name: str, run_ids: Sequence[str]) -> None:
    if earlier := store.earlier(name):
        print(
            f"sweep={name} now consists of {len(run_ids)} run(s); {len(earlier)} planned earlier "
            "under this name are no longer part of it and of its report",
            file=sys.stderr,
        )


def rates_sweep(name: str) -> str:
    """Return the name of the sweep that chooses the rates of another."""
    return f"{name}_rates"


def check_specs(
    specs: Sequence[RunSpec],
    results: Path,
    *,
    ended: Sequence[TrainedRun] = (),
    allow_partial: bool = False,
) -> None:
    """Fetch what the runs need and refuse what can't be trained, before anything is written.

    This prints what was read of their data, after the parts that are left out.

    Parameters
    ----------
    specs
        The runs to train.
    results
        Folder of the run store and of everything made from it.
    ended
        Ended runs of the same sweep.
    allow_partial
        Whether more than 5 % of the rows may be left out.

    Raises
    ------
    InputError
        An unreachable source, bad data, a text, target or rank that does not fit, too small a disk.
    """
    told = dict.fromkeys(line for run in ended for line in run.record.get("left_out", ()))
    if not specs:
        print(*told, sep="\n", end="\n" if told else "", flush=True)
        return
    from lowrank_study.data.splits import Splits, load_splits
    from lowrank_study.training.models import check_fits, model_folder

    # A sweep shares few models and tasks: each is fetched, verified and read once.
    folders: dict[Asset, Path] = {}
    splits: dict[str, Splits] = {}
    for spec in specs:
        if spec.model.source not in folders:
            folders[spec.model.source] = model_folder(spec.model)
        if rows_key(spec) not in splits:
            splits[rows_key(spec)] = load_splits(spec.task, folders[spec.model.source])
    for made in splits.values():  # one by one: files of two tasks may share a name
        check_left_out(made.account.left_out, allow_partial=allow_partial)
    left_out = dict.fromkeys(part for made in splits.values() for part in made.account.left_out)
    told |= dict.fromkeys(in_words(left_out))
    told |= dict.fromkeys(line for made in splits.values() for line in made.account.lines)
    print(*told, sep="\n", flush=True)
    check_same_rows(ended, {key: made.sha256 for key, made in splits.items()})
    needed = 0
    for spec in specs:
        folder = folders[spec.model.source]
        check_fits(spec, folder, splits[rows_key(spec)])
        needed += _checkpoint_bytes(spec, folder)
    assets.require_free_space(results, needed)


def _checkpoint_bytes(spec: RunSpec, folder: Path) -> int:
    if not spec.train.read_test:  # it chooses a rate, and keeps no model
        return 0
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return spec.method.checkpoint_bytes(weights)


def _places(workers: int | None, device: str, runs: int) -> list[tuple[str, str]]:
    """Return (cores, device) of each worker: one a GPU, else one a core, pinned to it.

    One process pinned to each core trains more examples a second than one with two threads.
    """
    import torch

    from lowrank_study.training.fit import torch_device

    found = torch_device(device)
    if found.type != "cpu":
        gpus = torch.cuda.device_count() if found.type == "cuda" and found.index is None else 1
        every = [f"cuda:{number}" for number in range(gpus)] if gpus > 1 else [str(found)]
        return [("", every[number % gpus]) for number in range(min(workers or gpus, runs))]
    count = min(workers or len(free_cores()), runs)
    return [(",".join(map(str, cores)), device) for cores in cores_of_workers(count)]


def _most_packed(spec: RunSpec, places: Sequence[tuple[str, str]], most: int | None) -> int:
    """Return how many runs like this one, at most so many, fit into a process's share of memory."""
    from lowrank_study.data.splits import load_splits
    from lowrank_study.training.fit import torch_device
    from lowrank_study.training.memory import free_memory_bytes, predict_peak
    from lowrank_study.training.models import model_folder, model_without_weights
    from lowrank_study.training.unpadded import can_unpad

    if spec.method.pack_key is None:
        return 1
    device = torch_device(places[0][1])
    folder = model_folder(spec.model)
    splits = load_splits(spec.task, folder)
    model = model_without_weights(spec, folder, number_of_labels=len(splits.labels))
    if not can_unpad(model):
        return 1
    free = free_memory_bytes(device)
    sharing = sum(torch_device(name) == device for _, name in places)
    share = math.inf if free is None else _MEMORY_SHARE * free / sharing
    predicted = predict_peak(spec, folder, splits)
    if predicted is None:
        return 1
    sizes = range(2, (most or _MOST_PACKED.get(device.type, 1)) + 1)
    return max((size for size in sizes if predicted.peak(size) <= share), default=1)
