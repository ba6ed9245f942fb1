"""Compare training steps of a language model with a plain loop of transformers and PEFT.

    python benchmarks/language_models.py [--only fp32,bf16] [--rounds 3] [--steps 4] [--quick]

SmolLM2-135M learns worked answers of GSM-Symbolic problems, 8 in a batch, by LoRA of rank 8 on all
linear maps, and by full fine-tuning. Both programs take the same steps from the same weights, in
processes of their own (`causal_loop.py`), in turn.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timing
from processes import HERE, quiet
from steps import hardware, precisions

from lowrank_study.config.run import compose
from lowrank_study.machine import free_cores
from lowrank_study.spec import RunSpec, to_mapping

COMMON = ("task=gsm_symbolic", "model=smollm2", "model.dropout=0.0", "trainer.batch_size=8")
METHODS = {
    "LoRA r=8 on all maps": ("method=lora_all_linear", "method.rank=8"),
    "full fine-tuning": ("method=full",),
}
TARGETS = {"fp32": 2.5, "bf16": 1.8}
"""Precision → least ratio of speeds for LoRA."""
MEMORY_TARGET = 2.0
PROGRAMS = ("libraries", "ours")


def compared(precision: str, *, rounds: int, steps: int, quick: bool) -> list[timing.Figure]:
    """Compare speed, memory and losses in a precision."""
    figures = []
    for method, settings in list(METHODS.items())[: 1 if quick else None]:
        spec = compose(*COMMON, *settings, f"trainer.precision={precision}")
        found: dict[str, list[dict[str, Any]]] = {program: [] for program in PROGRAMS}
        for _ in range(rounds):
            for program in PROGRAMS:
                found[program].append(_taken(spec, program, steps))
        title = f"SmolLM2-135M, {precision} ({hardware(precision)}), {method}"
        has_target = method != "full fine-tuning"
        figures += _figures(title, found, TARGETS[precision] if has_target else None)
    return figures


def _taken(spec: RunSpec, program: str, steps: int) -> dict[str, Any]:
    """Take steps by a program, in a process of its own."""
    threads = str(len(free_cores()))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.json"
        path.write_text(json.dumps(to_mapping(spec)))
        command = [sys.executable, HERE / "causal_loop.py", path, program, str(steps), threads]
        environment = quiet() | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _figures(
    title: str, found: dict[str, list[dict[str, Any]]], at_least: float | None
) -> list[timing.Figure]:
    theirs, ours = (found[program] for program in PROGRAMS)
    apart = [
        max(abs(a - b) for a, b in zip(x["losses"], y["losses"], strict=True))
        for x, y in zip(theirs, ours, strict=True)
    ]

    def memory(runs: Sequence[dict[str, Any]]) -> list[float]:
        return [run["peak_bytes"] - run["interpreter_bytes"] for run in runs]

    return [
        timing.ratio(
            f"{title}: examples per second, ours / libraries",
            [run["examples_per_second"] for run in ours],
            [run["examples_per_second"] for run in theirs],
            at_least=at_least,
        ),
        timing.ratio(
            f"{title}: peak memory minus the interpreter's, libraries / ours",
            memory(theirs),
            memory(ours),
            at_least=None if at_least is None else MEMORY_TARGET,
        ),
        timing.figure(f"{title}: our peak", [run["peak_bytes"] / 1e6 for run in ours], unit="MB"),
        timing.figure(f"{title}: largest difference of losses", apart, unit="nats"),
    ]


def main() -> None:
    """Run the benchmark and write its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(precisions()))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="LoRA only; writes only to --out")
    parser.add_argument("--out", type=Path, help="folder of the results")
    arguments = parser.parse_args()
    rounds, steps, quick = arguments.rounds, arguments.steps, arguments.quick
    with tempfile.TemporaryDirectory() as nowhere:
        out = arguments.out or (Path(nowhere) if quick else HERE / "results")
        for precision in arguments.only.split(","):
            provenance = timing.facts(rounds=str(rounds), steps=str(steps))
            found = {precision: compared(precision, rounds=rounds, steps=steps, quick=quick)}
            timing.write_results(out, "language_models", found, provenance=provenance)
            for row in timing.table(found):
                print("  ".join(row))


if __name__ == "__main__":
    main()
