"""Measure the speed of a sweep, against PEFT in transformers' Trainer and the machine's limit.

    python benchmarks/sweep.py [--only whole,step] [--rounds 3] [--quick]

`whole` times whole processes, from `python` to the last singular value: imports, training,
evaluation, saving and spectra of the same runs, by this suite and by `peft_loop.py`.
`step` compares one training step with its floor. `smollm2` compares speed and memory on a language
model of 135M parameters, `agreement` the accuracies of the suite and of the Trainer from the same
initial weights, and `growth` draws how time and memory grow. `forecast` compares the time that is
predicted for a sweep with the time that it takes. After a stop, the same command resumes `growth`
and `forecast`.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import timing
from agreement import agreement
from forecasts import forecast_errors
from growth import growth
from processes import peft_loop, steps, train_here, written
from steps import SMOLLM2, hardware, least_seconds, precisions

from lowrank_study.config.run import compose
from lowrank_study.machine import free_cores
from lowrank_study.results import runs_folder
from lowrank_study.runs.store import RunStore, TrainedRun
from lowrank_study.spec import RunSpec

HERE = Path(__file__).parent
OURS = (
    "import json, sys; from pathlib import Path; from lowrank_study.spec import from_mapping;"
    "from lowrank_study.sweeps.sweep import sweep;"
    "specs = [from_mapping(m) for m in json.loads(Path(sys.argv[1]).read_text())];"
    "sweep(specs, name='bench', results=Path(sys.argv[2]))"
)
FEW_TEXTS = ("task.train_size=128", "task.validation_size=64", "task.test_size=64")


CASES = ("whole", "step", "smollm2", "agreement", "growth", "forecast")
WHOLE_TARGETS = {"AMX": (10.0, 4.0), "AVX512-BF16": (4.0, 2.4)}
"""Hardware to the targets against the Trainer's defaults, and against it tuned."""
WHOLE_TARGETS_FP32 = 2.4, None
SMOLLM2_TARGETS = {"fp32": 2.5, "bf16": 1.8}
SHARE_OF_FLOOR = 0.6


def specs_of(*, quick: bool, precision: str = "auto") -> list[RunSpec]:
    """Return nine runs of `rank_sweep` (three if quick): full, and ranks of two targets."""
    base = ["model.dropout=0.0", f"trainer.precision={precision}", *(FEW_TEXTS if quick else [])]
    lora = [
        compose(*base, f"method={method}", f"method.rank={rank}")
        for method in ("lora", "lora_all_linear")
        for rank in ((1,) if quick else (1, 4, 16, 64))
    ]
    return [compose(*base, "method=full"), *lora]


def whole(rounds: int, *, quick: bool) -> list[timing.Figure]:
    """Time the same runs by the suite and by the Trainer in each precision, as processes."""
    sweeps = {name: specs_of(quick=quick, precision=name) for name in precisions()}
    accuracies: dict[str, list[float]] = {}
    contestants: dict[str, Callable[[], object]] = {}

    def ours(name: str, specs: Sequence[RunSpec]) -> None:
        accuracies[name] = [run.record["test"]["accuracy"] for run in trained(specs)]

    def trainer(name: str, specs: Sequence[RunSpec], *options: str) -> None:
        accuracies[name] = [run["test_score"] for run in peft_loop(specs, *options)]

    defaults = "Trainer's defaults"
    contestants[defaults] = partial(trainer, defaults, sweeps["fp32"])
    for precision, specs in sweeps.items():
        name, tuned = f"ours in {precision}", f"Trainer tuned in {precision}"
        contestants[name] = partial(ours, name, specs)
        contestants[tuned] = partial(trainer, tuned, specs, "--tuned")
    times = timing.interleaved(contestants, rounds=rounds, warm_up=lambda: None)
    figures = []
    for precision, specs in sweeps.items():
        took, machine = times[f"ours in {precision}"], hardware(precision)
        title = f"whole sweep, {precision} ({machine})"
        targets = WHOLE_TARGETS.get(machine, WHOLE_TARGETS_FP32)
        least = least_seconds(specs)
        shares = [least / seconds for seconds in took]
        figures.append(
            timing.figure(f"{title}: floor / ours", shares, unit="", at_least=SHARE_OF_FLOOR)
        )
        for name, at_least in zip(
            (defaults, f"Trainer tuned in {precision}"), targets, strict=True
        ):
            what = f"{title}, against {name}"
            figures.append(timing.ratio(what, times[name], took, at_least=at_least))
        figures.append(
            timing.ratio(
                f"{title}: upper bound for any program, against {defaults}",
                times[defaults],
                [least] * rounds,
            )
        )
    return figures + [
        timing.figure(
            f"test accuracy, mean of {len(found)} runs, {name}", [np.mean(found)], unit=""
        )
        for name, found in accuracies.items()
    ]


def trained(specs: Sequence[RunSpec]) -> list[TrainedRun]:
    """Train a sweep in a process of its own, with all that a sweep does."""
    with tempfile.TemporaryDirectory() as folder:
        runs, results = written(specs, Path(folder)), Path(folder) / "results"
        subprocess.run([sys.executable, "-c", OURS, str(runs), str(results)], check=True)
        return RunStore(runs_folder(results)).ended([spec.run_id for spec in specs])


def smollm2(rounds: int, *, quick: bool) -> list[timing.Figure]:
    """Compare LoRA on a language model with the Trainer, at the same precision."""
    size = FEW_TEXTS if quick else ("task.train_size=192", *FEW_TEXTS[1:])
    figures = []
    for precision in precisions():
        spec = compose(*SMOLLM2, *size, f"trainer.precision={precision}")
        ours, theirs = [], []
        for _ in range(rounds):
            theirs.append(peft_loop([spec], "--same-precision")[0])
            ours.append(train_here([spec], threads=len(free_cores())))
        figures += _compared(spec, ours, theirs)
    return figures


def _compared(
    spec: RunSpec, ours: Sequence[dict[str, float]], theirs: Sequence[dict[str, float]]
) -> list[timing.Figure]:
    precision = spec.train.precision
    title = f"SmolLM2-135M, {precision} ({hardware(precision)})"
    examples = spec.train.epochs * float(spec.task.train_size or 0)
    most = examples / least_seconds([spec], training_alone=True)
    speeds = [[run["examples_per_second"] for run in runs] for runs in (ours, theirs)]

    def memory(found: Sequence[dict[str, float]], *, alone: bool) -> list[float]:
        return [run["peak_bytes"] - alone * run["interpreter_bytes"] for run in found]

    return [
        timing.ratio(
            f"{title}: examples per second, ours / Trainer",
            *speeds,
            at_least=SMOLLM2_TARGETS[precision],
        ),
        timing.ratio(
            f"{title}: upper bound for any program / Trainer", [most] * len(theirs), speeds[1]
        ),
        timing.ratio(
            f"{title}: peak memory minus the libraries', Trainer / ours",
            memory(theirs, alone=True),
            memory(ours, alone=True),
            at_least=2.0,
        ),
        timing.ratio(
            f"{title}: peak memory of the process, Trainer / ours",
            memory(theirs, alone=False),
            memory(ours, alone=False),
        ),
        timing.figure(
            f"{title}: our peak", [r / 1e6 for r in memory(ours, alone=False)], unit="MB"
        ),
    ]


def main() -> None:
    """Run the benchmark and write its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few texts; writes only to --out")
    parser.add_argument("--out", type=Path, help="folder of the results")
    arguments = parser.parse_args()
    rounds, quick = arguments.rounds, arguments.quick
    with tempfile.TemporaryDirectory() as nowhere:
        out = arguments.out or (Path(nowhere) if quick else HERE / "results")
        run_cases(arguments.only.split(","), rounds=rounds, quick=quick, out=out)


def run_cases(names: Sequence[str], *, rounds: int, quick: bool, out: Path) -> None:
    """Run some cases, write each as soon as it is done, and print its figures."""
    cases = {
        "whole": lambda: whole(rounds, quick=quick),
        "step": lambda: steps(rounds, quick=quick),
        "smollm2": lambda: smollm2(rounds, quick=quick),
        "agreement": lambda: agreement(out, quick=quick),
        "growth": lambda: growth(out, quick=quick),
        "forecast": lambda: forecast_errors(out, rounds, quick=quick),
    }
    for name in names:
        provenance = timing.facts(precisions=", ".join(precisions()), rounds=str(rounds))
        found = {name: cases[name]()}
        timing.write_results(out, "sweep", found, provenance=provenance)
        for row in timing.table(found):
            print("  ".join(row))


if __name__ == "__main__":
    main()
