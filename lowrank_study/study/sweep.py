"""Many runs: check all of them, plan them, start workers, watch the store until they are done.

>>> sweep([compose("method.rank=4"), compose("method.rank=8")], name="two", results=Path("results"))
"""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lowrank_study import assets
from lowrank_study.config import RunConfig, Tuning
from lowrank_study.machine import cores_of_workers, free_cores
from lowrank_study.runs import RunStore, TrainedRun
from lowrank_study.spec import Asset, Lora, RunSpec, Task
from lowrank_study.study.effort import Effort
from lowrank_study.study.packs import packs
from lowrank_study.study.progress import SweepProgress
from lowrank_study.study.tuning import tuned
from lowrank_study.study.work import measure_run

_POLL_SECONDS = 0.5
_MOST_PACKED = {"cpu": 4, "cuda": 32}
"""A processor's caches hold no more; a GPU waits less the more there is to do at once."""
_MEMORY_SHARE = 0.8


def sweep_of(configs: Sequence[RunConfig]) -> list[TrainedRun]:
    """Run the sweep that configurations ask for together; what is not the run's is the first's."""
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
    tuning: Tuning | None = None,
) -> list[TrainedRun]:
    """Train every run that has not ended, measure all spectra, and return the runs in order.

    With `tuning`, rates are chosen first, by the runs of another sweep, `<name>_rates`.

    Raises
    ------
    InputError
        Any of the runs can't be: then none is planned.
    RuntimeError
        No worker is left, and not all runs have ended: the same call goes on with the rest.
    """
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
            ),
        )
    unique = list({spec.run_id: spec for spec in specs}.values())
    store = RunStore(results / "runs")
    check_specs(store.left(unique), results)
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
    if len(store.ended(run_ids)) < len(run_ids):
        _run_workers(store, costs, name, results, tracker, places[: len(planned)])
    runs = store.ended([spec.run_id for spec in unique])
    for run in runs:
        measure_run(run, results)
        if run.status != "done":
            print(f"{run.status}: {run.spec.run_id}: {run.record['message']}", file=sys.stderr)
    return runs


def rates_sweep(name: str) -> str:
    """Return the name of the sweep that chooses the rates of another."""
    return f"{name}_rates"


def check_specs(specs: Sequence[RunSpec], results: Path) -> None:
    """Fetch what the runs need and refuse what can't be trained, before anything is written.

    Raises
    ------
    InputError
        An unreachable source, bad data, a text, target or rank that does not fit, too small a disk.
    """
    if not specs:
        return
    from lowrank_study.training.data import Splits, load_splits
    from lowrank_study.training.models import check_fits, model_folder

    # A sweep shares few models and tasks: each is fetched, verified and read once.
    folders: dict[Asset, Path] = {}
    splits: dict[tuple[Task, Path], Splits] = {}
    needed = 0
    for spec in specs:
        if spec.model.source not in folders:
            folders[spec.model.source] = model_folder(spec.model)
        folder = folders[spec.model.source]
        if (spec.task, folder) not in splits:
            splits[spec.task, folder] = load_splits(spec.task, folder)
        check_fits(spec, folder, splits[spec.task, folder])
        needed += _checkpoint_bytes(spec, folder)
    assets.require_free_space(results, needed)


def _checkpoint_bytes(spec: RunSpec, folder: Path) -> int:
    if not spec.train.read_test:  # it chooses a rate, and keeps no model
        return 0
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return weights // 4 if isinstance(spec.method, Lora) else 2 * weights  # 2: 16-bit sources


def _run_workers(
    store: RunStore,
    costs: dict[str, float],
    name: str,
    results: Path,
    tracker: str,
    places: Sequence[tuple[str, str]],
) -> None:
    run_ids = list(costs)
    processes = [_start(name, results, tracker, *place) for place in places]
    try:
        with SweepProgress(name, costs, store.progress(run_ids)) as progress:
            # Others may have runs of this sweep: of the same command elsewhere, or by hand.
            while any(process.poll() is None for process in processes) or store.held(run_ids):
                time.sleep(_POLL_SECONDS)
                progress.show(store.progress(run_ids))
                for number, process in enumerate(processes):
                    # A worker that crashed has failed its run; another goes on with the rest.
                    # One that crashed before it had a run would crash again.
                    if process.poll() and store.end_runs_of(process.pid, _why_ended(process)):
                        processes[number] = _start(name, results, tracker, *places[number])
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if left := len(run_ids) - len(store.ended(run_ids)):
        raise RuntimeError(
            f"{left} of {len(run_ids)} runs have not ended, and no worker is left: what they wrote "
            "above says why; the same command goes on"
        )


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
    from lowrank_study.training.data import load_splits
    from lowrank_study.training.fit import torch_device
    from lowrank_study.training.memory import free_memory_bytes, predict_peak
    from lowrank_study.training.models import model_folder, model_without_weights
    from lowrank_study.training.unpadded import can_unpad

    if not isinstance(spec.method, Lora):
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


def _start(
    name: str, results: Path, tracker: str, cores: str, device: str
) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "lowrank_study.study.work", "--sweep", name]
    command += ["--results", str(results), "--device", device, "--tracker", tracker]
    command += ["--parent", str(os.getpid())]
    environment = {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    if cores:
        threads = str(len(cores.split(",")))
        command += ["--cores", cores]
        for library in ("OMP", "MKL", "OPENBLAS"):
            environment[f"{library}_NUM_THREADS"] = threads
    return subprocess.Popen(command, env=environment)


def _why_ended(process: "subprocess.Popen[bytes]") -> str:
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        return f"its worker process was ended by {name} (out of memory?)"
    return f"its worker process ended with exit code {process.returncode}"
