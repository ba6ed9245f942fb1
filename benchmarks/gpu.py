"""Measure training and spectra on one GPU, in at most eight minutes.

    python benchmarks/gpu.py                       # all cases that results/gpu.json lacks
    python benchmarks/gpu.py --again --only step   # a case once more
    python benchmarks/gpu.py --quick               # tiny models, any device, writes only to --out

`results/gpu.json` and `results/gpu.md` are written after each case, so the same command resumes
after a stop. A case that fails leaves its reason, and the next case follows. `--budget` is the time
for all cases together, in seconds: a case that exceeds what is left is stopped. Models and texts
are made up (`made_up.py`), so nothing is fetched.

    losses       losses of training steps against the processor's, from the same weights
    step_*       a training step against its floor: operations at the speed of a large product
    pack_N       N runs packed, against one run after the other
    spectra      singular values of a 4096×4096 update, against this machine's processor
    whole        a sweep of nine runs, from `python` to the last singular value, against the Trainer
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import timing
import torch
from made_up import made_up
from processes import peft_loop
from steps import Steps, fastest_product, wait_for
from sweep import trained

from lowrank_study.config.run import compose, fast_precision
from lowrank_study.spec import RunSpec
from lowrank_study.spectra.eigenvalues import GramMatrix
from lowrank_study.training.fit import torch_device

HERE = Path(__file__).parent
BUDGET = 480.0
PACKS = (2, 4, 8, 16, 32, 64)
SEVERAL = 3.0
"""Target of large packs, as a multiple of the speed of one run after the other."""
SEVERAL_FROM = 16
LORA = "method.rank=8"
PACKED = [[LORA, f"seed={seed}", "data_seed=0"] for seed in range(4)]
STEPS = {
    "step_lora": ("bert", [[LORA]]),
    "step_packed": ("bert", PACKED),
    "step_full": ("bert", [["method=full"]]),
    "step_smollm2": ("llama", [[LORA]]),
}
"""Case to the shape of the model, and the settings of each run."""
NAMES = {
    "step_lora": "MiniLM, LoRA r=8 on q,v",
    "step_packed": "MiniLM, four of them packed",
    "step_full": "MiniLM, full fine-tuning",
    "step_smollm2": "SmolLM2-135M, LoRA r=8 on q,v",
}
SWEEP = [
    ["method=full"],
    *(
        [f"method={method}", f"method.rank={rank}"]
        for method in ("lora", "lora_all_linear")
        for rank in (1, 4, 16, 64)
    ),
]
FEW_STEPS, FEW_PACKS = 2, (2, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all cases share."""

    device: torch.device
    precision: str
    """The faster one on this device."""
    quick: bool
    models: Mapping[str, Sequence[str]]
    """Shape of a model to the overrides that select it, and the texts."""

    def steps(
        self,
        model: str,
        runs: Sequence[Sequence[str]],
        *,
        batches: int = 20,
        precision: str | None = None,
        device: torch.device | None = None,
    ) -> Steps:
        """Return steps of packed runs."""
        return Steps(
            [self.spec(model, *each, precision=precision) for each in runs],
            batches=FEW_STEPS if self.quick else batches,
            device=device or self.device,
        )

    def spec(self, model: str, *overrides: str, precision: str | None = None) -> RunSpec:
        """Return a run on a made-up model."""
        fixed = f"trainer.precision={precision or self.precision}"
        return compose(*self.models[model], *overrides, fixed)


def losses(on: Setting) -> list[timing.Figure]:
    """Compare the losses of four packed runs with those of the processor."""

    def losses_on(device: torch.device, precision: str) -> np.ndarray:
        taken = on.steps("bert", PACKED, batches=8, precision=precision, device=device)
        return np.array([taken.take(batch) for batch in taken.batches])

    expected = losses_on(torch.device("cpu"), "fp32")
    figures = []
    for precision, at_most in (("fp32", 1e-4), ("bf16", None)):
        off = np.abs(losses_on(on.device, precision) / expected - 1).max()
        what = f"losses in {precision}, largest relative difference from the processor's in fp32"
        figures.append(timing.figure(what, [float(off)], unit="", at_most=at_most))
    return figures


def step(on: Setting, name: str) -> list[timing.Figure]:
    """Compare a step with its floor."""
    model, runs = STEPS[name]
    taken = on.steps(model, runs)
    operations, seconds = taken.operations(), _seconds(taken)
    size = 512 if on.quick else 8192
    peak = fastest_product(size, size, size, precision=on.precision, device=on.device)
    shares = [needed / peak / took for needed, took in zip(operations, seconds, strict=True)]
    return [
        timing.figure(f"{NAMES[name]}: share of a large product's speed", shares, unit=""),
        timing.figure(f"{NAMES[name]}: a step", [1e3 * took for took in seconds], unit="ms"),
    ]


def pack(on: Setting, runs: int) -> list[timing.Figure]:
    """Compare packed runs with one run after the other."""
    settings = [[LORA, f"seed={seed}", "data_seed=0"] for seed in range(runs)]
    alone, packed = (_seconds(on.steps("bert", some)) for some in (settings[:1], settings))
    return [
        timing.ratio(
            f"{runs} runs packed, against one after the other",
            [runs * took for took in alone],
            packed,
            at_least=SEVERAL if runs >= SEVERAL_FROM else None,
        ),
        timing.figure(f"{runs} runs packed: a step", [1e3 * took for took in packed], unit="ms"),
    ]


def _seconds(taken: Steps) -> list[float]:
    """Return the time of each step, after one that compiles and fills caches."""
    taken.take(taken.batches[0])
    seconds = []
    for batch in taken.batches:
        start = time.perf_counter()
        taken.take(batch)
        seconds.append(time.perf_counter() - start)
    return seconds


def spectra(on: Setting) -> list[timing.Figure]:
    """Compare the singular values of a large update with those of the processor."""
    size = 256 if on.quick else 4096
    rng = np.random.default_rng(0)
    delta = rng.standard_normal((size, 8)) @ rng.standard_normal((8, size))
    delta += 0.01 * rng.standard_normal((size, size))
    found: dict[str, np.ndarray] = {}

    def decompose(name: str, device: torch.device) -> None:
        gram = GramMatrix(size, device)
        gram.add(delta)
        found[name] = gram.singular_values()
        wait_for(device)

    places = {"processor": torch.device("cpu"), "device": on.device}
    times = timing.interleaved(
        {name: partial(decompose, name, device) for name, device in places.items()},
        rounds=2,
        warm_up=lambda: decompose("device", on.device),
    )
    error = np.abs(found["device"] - found["processor"]).max() / found["processor"][0]
    title = f"spectrum of {size}×{size}"
    return [
        timing.ratio(f"{title}, against the processor", times["processor"], times["device"]),
        timing.figure(f"{title}", times["device"], unit="s"),
        timing.figure(f"{title}, largest difference", [float(error)], unit="σ₁", at_most=1e-7),
    ]


def whole(on: Setting) -> list[timing.Figure]:
    """Time a sweep against the Trainer on the same device, as processes."""
    specs = [on.spec("bert", *each) for each in (SWEEP[:2] if on.quick else SWEEP)]
    use = ("--device", on.device.type)
    accuracies: dict[str, list[float]] = {}

    def ours() -> None:
        accuracies["ours"] = [run.record["test"]["accuracy"] for run in trained(specs)]

    def tuned() -> None:
        runs = peft_loop(specs, "--tuned", *use)
        accuracies["Trainer"] = [run["test_score"] for run in runs]

    times = timing.interleaved({"ours": ours, "Trainer": tuned}, rounds=1, warm_up=lambda: None)
    return [
        timing.ratio("whole sweep, against Trainer tuned", times["Trainer"], times["ours"]),
        timing.figure("whole sweep", times["ours"], unit="s"),
        *(
            timing.figure(f"test accuracy, mean of {len(each)} runs, {name}", each, unit="")
            for name, each in accuracies.items()
        ),
    ]


def cases(quick: bool) -> dict[str, Callable[[Setting], list[timing.Figure]]]:
    """Return all cases by name, the quickest first."""
    sizes = FEW_PACKS if quick else PACKS
    return {
        "losses": losses,
        **{name: partial(step, name=name) for name in STEPS},
        **{f"pack_{runs}": partial(pack, runs=runs) for runs in sizes},
        "spectra": spectra,
        "whole": whole,
    }


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Stop what takes longer with a `TimeoutError`."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"stopped after {seconds:.0f} s, the rest of the budget")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(1.0, seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def run_cases(names: Sequence[str], on: Setting, *, out: Path, budget: float) -> bool:
    """Run cases, write each as soon as it has ended, and return whether all succeeded."""
    start, every, all_done = time.perf_counter(), cases(on.quick), True
    provenance = timing.facts(device=_device_name(on.device), precision=on.precision)
    for name in names:
        left = budget - (time.perf_counter() - start)
        reason, figures = "", []
        try:
            with at_most(left):
                figures = every[name](on)
        except Exception as error:  # the next case may succeed
            reason, all_done = f"{type(error).__name__}: {error}".splitlines()[0][:300], False
            print(f"{name} failed: {reason}", file=sys.stderr)
        timing.write_results(
            out, "gpu", {name: figures}, provenance=provenance, failed={name: reason}
        )
        for row in timing.table({name: figures}):
            print("  ".join(row), flush=True)
        if on.device.type == "cuda":
            torch.cuda.empty_cache()
    return all_done


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _done(out: Path) -> set[str]:
    """Return the cases that have figures."""
    path = out / "gpu.json"
    content: Mapping[str, dict[str, object]] = (
        json.loads(path.read_text()) if path.is_file() else {}
    )
    return {name for name, case in content.items() if case["figures"]}


def main() -> None:
    """Run the cases that have no figures yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="cases, separated by commas")
    parser.add_argument("--again", action="store_true", help="also run cases that have figures")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all cases")
    parser.add_argument("--quick", action="store_true", help="few texts; writes only to --out")
    parser.add_argument("--out", type=Path, help="folder of the results")
    arguments = parser.parse_args()
    quick: bool = arguments.quick
    if not quick and not torch.cuda.is_available():
        sys.exit("error: torch finds no GPU here. `--quick` checks the script without one.")
    device = torch_device("auto")
    with tempfile.TemporaryDirectory() as folder:
        out = arguments.out or (Path(folder) if quick else HERE / "results")
        names = arguments.only.split(",") if arguments.only else list(cases(quick))
        if unknown := set(names) - set(cases(quick)):
            parser.error(f"--only: {', '.join(unknown)}; valid are {', '.join(cases(quick))}")
        models = made_up(Path(folder) / "made_up", tiny=quick)
        on = Setting(device=device, precision=fast_precision(), quick=quick, models=models)
        left = [name for name in names if arguments.again or name not in _done(out)]
        if not run_cases(left, on, out=out, budget=arguments.budget):
            sys.exit(1)


if __name__ == "__main__":
    main()
