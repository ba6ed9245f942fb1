"""Measure the speed and memory of the analyzer, each beside its target.

python benchmarks/spectra.py                       # all but the whole model, about 8 minutes
python benchmarks/spectra.py --only exact          # exact, certified, product, adapter, ...
python benchmarks/spectra.py --only whole_model    # 13.5 GB against 13.5 GB, as sparse files
python benchmarks/spectra.py --quick               # small ones, seconds, nothing is written
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import llama_files
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from timing import HEADINGS, Figure, facts, figure, interleaved, ratio, table, write_results

from lowrank_study.config.run import composed
from lowrank_study.measurement.measure import measure_spectra
from lowrank_study.measurement.request import read_request
from lowrank_study.measurement.subjects import AdapterOnBase
from lowrank_study.reporting.spectra_report import report_spectra
from lowrank_study.spectra.ranks import energy_rank
from lowrank_study.spectra.svd import (
    certified_svd,
    energy_rank_bounds,
    svd_of_matrix,
    svd_of_product,
)

Array = npt.NDArray[np.float64]
RESULTS = Path(__file__).parent / "results"
SHARES = (0.90, 0.95, 0.99)
SHORTEST = 1.0
"""Seconds for which a short call is repeated in a round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The sizes of all cases."""

    side: int
    """Rows and columns of the square matrices."""
    hidden: int
    """Width of the model."""
    inner: int
    """Width of its feed-forward maps."""
    vocabulary: int
    """Rows of its embedding."""
    touched: int
    """Changed rows of the embedding."""
    layers: int
    """Layers of the adapter's model."""
    filled: int
    """Filled matrices of the pair of checkpoints."""
    rounds: int
    """Number of rounds of each timing."""


REAL = Sizes(
    side=4096,
    hidden=llama_files.HIDDEN,
    inner=llama_files.INNER,
    vocabulary=llama_files.VOCABULARY,
    touched=2000,
    layers=llama_files.LAYERS,
    filled=8,
    rounds=3,
)
QUICK = Sizes(
    side=256, hidden=64, inner=172, vocabulary=500, touched=50, layers=2, filled=8, rounds=2
)


def planted(side: int) -> Array:
    """Return a matrix of rank 8 with halving energies, and 0.5 % of noise."""
    rng = np.random.default_rng(0)
    U, V = (np.linalg.qr(rng.standard_normal((side, 8)))[0] for _ in range(2))
    signal = U * 2.0 ** (-np.arange(8) / 2) @ V.T
    noise = rng.standard_normal((side, side))
    noise *= np.sqrt(0.005 / 0.995) * np.linalg.norm(signal) / np.linalg.norm(noise)
    return np.asarray(signal + noise)


def decompositions(chosen: set[str], sizes: Sizes) -> dict[str, list[Figure]]:
    """Time exact, certified and product spectra of one matrix in one interleaved run."""
    X, small = planted(sizes.side), planted(sizes.side // 8)
    rng = np.random.default_rng(1)
    B, A = rng.standard_normal((sizes.side, 8)), rng.standard_normal((8, sizes.side))
    last: dict[str, Any] = {}

    def kept(name: str, run: Callable[[], Any]) -> Callable[[], None]:
        return lambda: last.update({name: run()})

    with_vectors = kept("with vectors", lambda: np.linalg.svd(X))
    values_only = kept("values only", lambda: np.linalg.svd(X, compute_uv=False))
    gram = kept("gram", lambda: svd_of_matrix(X, method="gram"))
    certified = kept("certified", lambda: certified_svd(X, shares=SHARES))
    dense = kept("dense", lambda: np.linalg.svd(2.0 * B @ A, compute_uv=False))
    product = kept("product", lambda: svd_of_product(B, A, 2.0))
    contestants = {
        "exact": {"with vectors": with_vectors, "values only": values_only, "gram": gram},
        "certified": {"values only": values_only, "certified": certified},
        "product": {"dense": dense, "product": product},
    }

    def warm_up() -> None:
        np.linalg.svd(small)
        svd_of_matrix(small, method="gram")
        certified_svd(small, shares=SHARES)
        svd_of_product(B[:64], A, 2.0)

    needed = {
        name: run
        for case in contestants
        if case in chosen
        for name, run in contestants[case].items()
    }
    times = interleaved(needed, rounds=sizes.rounds, warm_up=warm_up, shortest=SHORTEST)
    shape = f"{sizes.side}×{sizes.side}"
    found: dict[str, list[Figure]] = {}
    if "exact" in chosen:
        error = np.abs(last["gram"].singular_values - last["values only"]).max()
        found["exact"] = [
            ratio(
                f"exact spectrum, {shape}, against np.linalg.svd with vectors",
                times["with vectors"],
                times["gram"],
                at_least=8,
            ),
            ratio(
                f"exact spectrum, {shape}, against np.linalg.svd(compute_uv=False)",
                times["values only"],
                times["gram"],
                at_least=5,
            ),
            figure(
                "exact spectrum, largest error",
                [float(error / last["values only"][0])],
                unit="σ₁",
                at_most=1e-7,
            ),
        ]
    if "certified" in chosen:
        found["certified"] = [
            ratio(
                f"certified energy ranks, {shape}, against np.linalg.svd(compute_uv=False)",
                times["values only"],
                times["certified"],
                at_least=100,
            ),
            figure(
                "certified energy ranks at 90, 95, 99 %, largest difference from the exact ones",
                [_rank_difference(last["certified"], last["values only"])],
                unit="",
                at_most=0,
            ),
        ]
    if "product" in chosen:
        values = last["product"].singular_values
        error = np.abs(values - last["dense"][: values.size]).max() / values[0]
        found["product"] = [
            ratio(
                f"adapter of rank 8, {shape}, against np.linalg.svd(B @ A, compute_uv=False)",
                times["dense"],
                times["product"],
                at_least=1000,
            ),
            figure("adapter of rank 8, largest error", [float(error)], unit="σ₁"),
        ]
    return found


def _rank_difference(found: Any, exact: Array) -> float:
    largest = 0
    for share in SHARES:
        low, high = energy_rank_bounds(
            found.singular_values, found.frobenius_norm, found.residual_norm, share
        )
        expected = energy_rank(exact, share)
        largest = max(largest, abs(low - expected), abs((high or exact.size) - expected))
    return float(largest)


def adapter(sizes: Sizes) -> list[Figure]:
    """Time a whole adapter from its file to all measures, and to the written report."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter"
        maps = llama_files.write_adapter(
            path, layers=sizes.layers, rank=8, hidden=sizes.hidden, inner=sizes.inner
        )
        settings = read_request(composed("measure_spectra") | {"adapter": str(path)}).settings
        subject = AdapterOnBase(adapter=path, base=None)

        def measured() -> None:
            found = measure_spectra(
                subject,
                other=None,
                settings=settings,
                on_progress=lambda step: None,
                on_left_out=print,
            )
            assert len(found.matrices) == maps

        def reported() -> None:
            report_spectra(adapter=path, out=Path(folder) / "report")

        times = interleaved(
            {"measured": measured, "reported": reported}, rounds=sizes.rounds, warm_up=reported
        )
    what = f"adapter of rank 8 on all {maps} maps of a model of width {sizes.hidden}"
    return [
        figure(f"{what}, measured", times["measured"], unit="s", at_most=5),
        figure(f"{what}, measured and report written", times["reported"], unit="s"),
    ]


def embedding(sizes: Sizes) -> list[Figure]:
    """Time an embedding with mostly unchanged rows, with and without those rows."""
    rng = np.random.default_rng(0)
    delta = np.zeros((sizes.vocabulary, sizes.hidden))
    rows = rng.choice(sizes.vocabulary, sizes.touched, replace=False)
    delta[rows] = rng.standard_normal((sizes.touched, sizes.hidden))
    # One entry of 1e-30 keeps a row from being left out, and is far below rounding.
    full = delta.copy()
    full[:, 0] += np.where(full[:, 0] == 0.0, 1e-30, 0.0)
    last: dict[str, Array] = {}

    def run(name: str, matrix: Array) -> Callable[[], None]:
        return lambda: last.update({name: svd_of_matrix(matrix, method="gram").singular_values})

    times = interleaved(
        {"all rows": run("all rows", full), "touched rows": run("touched rows", delta)},
        rounds=sizes.rounds,
        warm_up=lambda: svd_of_matrix(planted(256), method="gram"),
    )
    count = last["touched rows"].size
    difference = np.abs(last["all rows"][:count] - last["touched rows"]).max()
    what = f"embedding {sizes.vocabulary}×{sizes.hidden} with {sizes.touched} rows changed"
    return [
        ratio(
            f"{what}, without the other rows, against all rows",
            times["all rows"],
            times["touched rows"],
        ),
        figure(
            f"{what}, largest error without the other rows",
            [float(difference / last["all rows"][0])],
            unit="σ₁",
            at_most=1e-7,
        ),
    ]


def memory(sizes: Sizes, *, layers: int) -> list[Figure]:
    """Measure the memory of comparing two sharded bfloat16 checkpoints in a separate process."""
    tensors = llama_files.shapes(
        layers, hidden=sizes.hidden, inner=sizes.inner, vocabulary=sizes.vocabulary
    )
    first = [name for name, shape in tensors.items() if len(shape) == 2][: sizes.filled]
    with tempfile.TemporaryDirectory() as folder:
        before, after, out = (Path(folder) / name for name in ("before", "after", "report"))
        llama_files.write_pair(before, after, tensors, filled=first)
        program = Path(__file__).parent / "peak_memory.py"
        done = subprocess.run(
            [sys.executable, str(program), str(before), str(after), str(out)],
            capture_output=True,
            text=True,
            check=True,
        )
    found = json.loads(done.stdout)
    matrices = sum(len(shape) == 2 for shape in tensors.values())
    assert found["matrices"] == matrices, found
    assert len(found["ranks"]) == sizes.filled, found
    assert set(found["ranks"].values()) == {llama_files.PLANTED_RANK}, found
    taken = found["peak"] - found["interpreter"]
    largest = max(prod(shape) for shape in tensors.values())
    what = f"peak memory of a pair with {matrices} matrices minus the interpreter's"
    sizes_of = {"bfloat16": 2, "float32": 4, "float64": 8}
    return [
        figure(
            f"{what}, in units of the largest matrix in {dtype}",
            [taken / (largest * size)],
            unit="×",
            at_most=3,
        )
        for dtype, size in sizes_of.items()
    ] + [
        figure(what, [taken / 1e6], unit="MB"),
        figure(
            "memory of the interpreter after all imports", [found["interpreter"] / 1e6], unit="MB"
        ),
        figure("time to measure the pair and write the report", [found["seconds"]], unit="s"),
    ]


TOGETHER = ("exact", "certified", "product")
ALONE: dict[str, Callable[[Sizes], list[Figure]]] = {
    "adapter": adapter,
    "embedding": embedding,
    "memory": lambda sizes: memory(sizes, layers=1),
    "whole_model": lambda sizes: memory(sizes, layers=sizes.layers),
}
CASES = (*TOGETHER, *ALONE)
USUAL = tuple(case for case in CASES if case != "whole_model")


def main() -> None:
    """Run the chosen cases, show their table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="A,B", help=f"some of {', '.join(CASES)}")
    parser.add_argument("--quick", action="store_true", help="small sizes; writes only to --out")
    parser.add_argument("--rounds", type=int, help="of each timing")
    parser.add_argument("--filled", type=int, help="matrices of the pair that are no holes")
    parser.add_argument("--out", type=Path, help="folder of the results")
    chosen = parser.parse_args()
    names = USUAL if chosen.only is None else tuple(chosen.only.split(","))
    unknown = [name for name in names if name not in CASES]
    if unknown:
        parser.error(f"no case {unknown[0]!r}: choose from {', '.join(CASES)}")
    sizes = QUICK if chosen.quick else REAL
    given = {"rounds": chosen.rounds, "filled": chosen.filled}
    sizes = replace(sizes, **{name: value for name, value in given.items() if value is not None})
    provenance = facts(dtype="float64", method="gram")
    cases: dict[str, list[Figure]] = {}
    if together := set(names) & set(TOGETHER):
        cases |= decompositions(together, sizes)
    cases |= {name: run(sizes) for name, run in ALONE.items() if name in names}
    if chosen.quick:  # targets hold for the real sizes
        cases = {
            name: [replace(each, at_least=None, at_most=None) for each in figures]
            for name, figures in cases.items()
        }
    shown = Table(*HEADINGS)
    for row in table(cases):
        shown.add_row(*row)
    Console().print(shown)
    out = chosen.out or (None if chosen.quick else RESULTS)
    if out is not None:
        write_results(out, "spectra", cases, provenance=provenance)


if __name__ == "__main__":
    main()
