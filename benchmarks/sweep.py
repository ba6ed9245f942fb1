"""Measure the speed of a sweep, against PEFT in transformers' Trainer and the machine's limit.

    python benchmarks/sweep.py [--only whole,step,smollm2,agreement,growth] [--rounds 3] [--quick]

`whole` times whole processes, from `python` to the last singular value: imports, training,
evaluation, saving and spectra of the same runs, by this suite and by `peft_loop.py`.
`step` compares one training step with its floor. `smollm2` compares speed and memory on a language
model of 135M parameters, `agreement` the accuracies of the suite and of the Trainer from the same
initial weights, and `growth` draws how time and memory grow.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import timing
from agreement import agreement
from growth import growth
from processes import peft_loop, train_here, written
from steps import least_seconds, steps

from lowrank_study.config.run import compose, fast_precision
from lowrank_study.results import runs_folder
from lowrank_study.runs.store import RunStore
from lowrank_study.spec import RunSpec

HERE = Path(__file__).parent
OURS = (
    "import json, sys; from pathlib import Path; from lowrank_study.spec import from_mapping;"
    "from lowrank_study.sweeps.sweep import sweep;"
    "specs = [from_mapping(m) for m in json.loads(Path(sys.argv[1]).read_text())];"
    "sweep(specs, name='bench', results=Path(sys.argv[2]))"
)
FEW_TEXTS = ("task.train_size=128", "task.validation_size=64", "task.test_size=64")


def specs_of(*, quick: bool) -> list[RunSpec]:
    """Return nine runs of `rank_sweep`: full fine-tuning, and four ranks of both targets."""
    base = ["model.dropout=0.0", *(FEW_TEXTS if quick else [])]
    lora = [
        compose(*base, f"method={method}", f"method.rank={rank}")
        for method in ("lora", "lora_all_linear")
        for rank in (1, 4, 16, 64)
    ]
    return [compose(*base, "method=full"), *lora]


def whole(rounds: int, *, quick: bool) -> list[timing.Figure]:
    """Time the same runs by the suite and by the Trainer, as processes."""
    specs = specs_of(quick=quick)
    accuracies: dict[str, list[float]] = {}

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            runs, results = written(specs, Path(folder)), Path(folder) / "results"
            command = [sys.executable, "-c", OURS, str(runs), str(results)]
            subprocess.run(command, check=True)
            ended = RunStore(runs_folder(results)).ended([spec.run_id for spec in specs])
            accuracies["ours"] = [run.record["test"]["accuracy"] for run in ended]

    def trainer(*options: str) -> None:
        name = " ".join(["Trainer", *options])
        accuracies[name] = [run["test_score"] for run in peft_loop(specs, *options)]

    times = timing.interleaved(
        {"ours": ours, "Trainer": trainer, "Trainer --tuned": lambda: trainer("--tuned")},
        rounds=rounds,
        warm_up=lambda: None,
    )

    def against(name: str, what: str, at_least: float) -> timing.Figure:
        return timing.ratio(f"whole sweep, {what}", times[name], times["ours"], at_least=at_least)

    # The suite trains in plain PyTorch: there is no other path to time. Without bf16
    # hardware both sides compute in fp32, which has its own target and limit.
    figures = []
    if specs[0].train.precision == "fp32":
        limit = "in fp32, upper bound for any program on this machine"
        least = [least_seconds(specs)] * rounds
        figures += [
            against("Trainer", "both in fp32, against Trainer's defaults", 3),
            timing.ratio(f"whole sweep, {limit}", times["Trainer"], least),
        ]
    return [
        *figures,
        against("Trainer", "against Trainer's defaults", 10),
        against("Trainer --tuned", "against Trainer tuned", 4),
        *(
            timing.figure(
                f"test accuracy, mean of {len(found)} runs, {name}", [np.mean(found)], unit=""
            )
            for name, found in accuracies.items()
        ),
    ]


def smollm2(rounds: int, *, quick: bool) -> list[timing.Figure]:
    """Compare LoRA on a language model's query and value with the Hugging Face loop."""
    size = FEW_TEXTS if quick else ("task.train_size=192", *FEW_TEXTS[1:])
    spec = compose("model=smollm2", "model.dropout=0.0", "method.rank=8", *size)
    ours, theirs = [], []
    for _ in range(rounds):
        theirs.append(peft_loop([spec])[0])
        ours.append(train_here([spec], threads=2))

    limits = []
    if spec.train.precision == "fp32":
        examples = spec.train.epochs * float(spec.task.train_size or 0)
        most = [examples / least_seconds([spec], training_alone=True)] * rounds
        limits.append(
            timing.ratio(
                "SmolLM2-135M, in fp32: the most that any program could reach here",
                most,
                [run["examples_per_second"] for run in theirs],
            )
        )

    def memory(found: Sequence[dict[str, float]], *, alone: bool) -> list[float]:
        return [run["peak_bytes"] - alone * run["interpreter_bytes"] for run in found]

    return [
        timing.ratio(
            "SmolLM2-135M, examples per second, ours / Trainer",
            [run["examples_per_second"] for run in ours],
            [run["examples_per_second"] for run in theirs],
            at_least=2.5,
        ),
        *limits,
        timing.ratio(
            "SmolLM2-135M, peak memory minus the libraries', Trainer / ours",
            memory(theirs, alone=True),
            memory(ours, alone=True),
            at_least=2.0,
        ),
        timing.ratio(
            "SmolLM2-135M, peak memory of the process, Trainer / ours",
            memory(theirs, alone=False),
            memory(ours, alone=False),
        ),
        timing.figure(
            "SmolLM2-135M, our peak", [r / 1e6 for r in memory(ours, alone=False)], unit="MB"
        ),
    ]


def main() -> None:
    """Run the benchmark and write its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="whole,step,smollm2,agreement,growth")
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
        "step": lambda: steps(rounds),
        "smollm2": lambda: smollm2(rounds, quick=quick),
        "agreement": lambda: agreement(out, quick=quick),
        "growth": lambda: growth(out, quick=quick),
    }
    for name in names:
        provenance = timing.facts(precision=fast_precision(), rounds=str(rounds))
        found = {name: cases[name]()}
        timing.write_results(out, "sweep", found, provenance=provenance)
        for row in timing.table(found):
            print("  ".join(row))


if __name__ == "__main__":
    main()
