"""Many runs: check all of them, plan them, start workers, watch the store until they are done.

>>> sweep([compose("method.rank=4"), compose("method.rank=8")], name="two", results=Path("results"))
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lowrank_study import assets
from lowrank_study.runs import RunStore, TrainedRun
from lowrank_study.spec import FullFineTuning, Lora, RunSpec
from lowrank_study.study.work import measure_run

_POLL_SECONDS = 0.5
_FULL_COST = 1.5  # a full fine-tuning step against a LoRA step: it also has weight gradients


def sweep(
    specs: Sequence[RunSpec],
    *,
    name: str,
    results: Path,
    question: str = "",
    device: str = "auto",
    tracker: str = "none",
    workers: int | None = None,
) -> list[TrainedRun]:
    """Train every run that has not ended, measure all spectra, and return the runs.

    Raises
    ------
    InputError
        Any of the runs can't be: then none is planned.
    """
    unique = list({spec.run_id: spec for spec in specs}.values())
    unique.sort(key=lambda spec: not isinstance(spec.method, FullFineTuning))  # longest first
    store = RunStore(results / "runs")
    done = {run.spec.run_id for run in store.ended([spec.run_id for spec in unique])}
    check_specs([spec for spec in unique if spec.run_id not in done], results)
    run_ids = store.plan(name, unique, question=question)
    if len(store.ended(run_ids)) < len(run_ids):
        _run_workers(store, run_ids, name, results, device, tracker, workers)
    runs = store.ended(run_ids)
    for run in runs:
        measure_run(run, results)
    return runs


def check_specs(specs: Sequence[RunSpec], results: Path) -> None:
    """Fetch what the runs need and refuse what can't be trained, before anything is written.

    Raises
    ------
    InputError
        An unreachable source, bad data, a target or rank that does not fit, too small a disk.
    """
    if not specs:
        return
    from lowrank_study.training.data import load_splits
    from lowrank_study.training.models import check_method, model_folder

    labels: dict[str, int] = {}
    needed = 0
    for spec in specs:
        folder = model_folder(spec.model)
        data = f"{spec.task} {folder}"
        if data not in labels:
            labels[data] = len(load_splits(spec.task, folder).labels)
        check_method(spec, folder, number_of_labels=labels[data])
        needed += _checkpoint_bytes(spec, folder)
    assets.require_free_space(results, needed)


def _checkpoint_bytes(spec: RunSpec, folder: Path) -> int:
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return weights // 4 if isinstance(spec.method, Lora) else 2 * weights  # 2: 16-bit sources


def _run_workers(
    store: RunStore,
    run_ids: list[str],
    name: str,
    results: Path,
    device: str,
    tracker: str,
    workers: int | None,
) -> None:
    places = _places(workers, device, len(run_ids))
    costs = {run_id: _FULL_COST if "-full-" in run_id else 1.0 for run_id in run_ids}
    processes = [_start(name, results, tracker, *place) for place in places]
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("runs  {task.fields[state]}"),
        TimeElapsedColumn(),
    )
    started, shares_at_start = time.monotonic(), _done_cost(store, costs)
    try:
        with Progress(*columns, console=console, disable=not console.is_terminal) as display:
            bar = display.add_task(name, total=len(run_ids), state="starting")
            told: set[str] = set()
            while any(process.poll() is None for process in processes):
                time.sleep(_POLL_SECONDS)
                for number, process in enumerate(processes):
                    if process.poll():  # it crashed: its run has failed, the others go on
                        store.fail_runs_of(process.pid, _why_ended(process.returncode))
                        processes[number] = _start(name, results, tracker, *places[number])
                shares = store.progress(run_ids)
                ended = [run_id for run_id, share in shares.items() if share == 1.0]
                eta = _eta(store, costs, shares_at_start, time.monotonic() - started)
                state = f"{len(shares) - len(ended)} running, {eta}"
                display.update(bar, completed=len(ended), state=state)
                for run_id in ended:
                    if (
                        run_id not in told
                        and not console.is_terminal
                        and shares_at_start is not None
                    ):
                        print(f"[{len(ended)}/{len(run_ids)}] {run_id}, {eta}", file=sys.stderr)
                    told.add(run_id)
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
                process.wait()


def _done_cost(store: RunStore, costs: dict[str, float]) -> float:
    return sum(costs[run_id] * share for run_id, share in store.progress(costs).items())


def _eta(store: RunStore, costs: dict[str, float], at_start: float, elapsed: float) -> str:
    """Time left, from the shares of all runs that are done, so from the first run on."""
    done = _done_cost(store, costs)
    if done - at_start < 1e-3:
        return "ETA after the first steps"
    left = elapsed * (sum(costs.values()) - done) / (done - at_start)
    return f"ETA {int(left // 60)}:{int(left % 60):02d}"


def _places(workers: int | None, device: str, runs: int) -> list[tuple[str, str]]:
    """Return (cores, device) of each worker: one a GPU, else one a core, pinned to it.

    One process pinned to each core trains more examples a second than one with two threads.
    """
    import torch

    if torch.cuda.is_available() and device in ("auto", "cuda"):
        gpus = min(workers or torch.cuda.device_count(), runs)
        return [("", f"cuda:{number % torch.cuda.device_count()}") for number in range(gpus)]
    free = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    count = min(workers or len(free), runs)
    shares = [free[number::count] or [free[number % len(free)]] for number in range(count)]
    return [(",".join(map(str, cores)), device) for cores in shares]


def _start(
    name: str, results: Path, tracker: str, cores: str, device: str
) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "lowrank_study.study.work", "--sweep", name]
    command += ["--results", str(results), "--device", device, "--tracker", tracker]
    environment = {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    if cores:
        threads = str(len(cores.split(",")))
        command += ["--cores", cores]
        for library in ("OMP", "MKL", "OPENBLAS"):
            environment[f"{library}_NUM_THREADS"] = threads
    return subprocess.Popen(command, env=environment)


def _why_ended(code: int) -> str:
    if code < 0:
        return f"its worker process was ended by {signal.Signals(-code).name} (out of memory?)"
    return f"its worker process ended with exit code {code}"
