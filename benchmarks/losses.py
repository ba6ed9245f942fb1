"""Simulate how often intervals of a language model's loss cover the true value.

python benchmarks/losses.py            # about five minutes on one core
python benchmarks/losses.py --quick    # few studies, writes nothing: checks that it runs

Each study has a few seeds of full fine-tuning and of an adapter, tested on the same documents.
Documents differ in length, difficulty and what fine-tuning gains on them, with heavy tails. The
intervals and tests are those of `lowrank_study/answers/`, and hold for new seeds and new documents.
"""

import argparse
import json
import math
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lowrank_study.answers.statistics import (
    interval_of_mean,
    mean_score,
    paired_difference,
    retention,
)
from lowrank_study.answers.sufficient_rank import rank_tests
from lowrank_study.provenance import provenance
from lowrank_study.tasks.metric import NATS_PER_TOKEN

HERE = Path(__file__).parent
STUDIES, QUICK_STUDIES = 1000, 20
LENGTH_SD, DIFFICULTY_SD, SHARED = 0.7, 0.6, 0.3
"""Of the logarithms of a document's tokens and loss, and their correlation."""
SEED_SD, NOISE_SD = 0.01, 0.1
"""Relative deviations of a run, and of a run on one document."""
FULL, MARGIN = 0.6, 0.1
"""Loss of full fine-tuning over that of the base model, and the margin's share of the gain."""
INFINITE = (0.0, math.inf)
Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Documents:
    """How the documents of a test set spread."""

    name: str
    count: int
    tail: str
    """Of a document's factor: `normal`, `lognormal`, or the exponent of a Pareto distribution."""
    is_one_sided: bool
    """Whether the adapter's loss is further above that of full fine-tuning on few documents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How often intervals covered the truth, and tests were wrong, over all studies."""

    documents: str
    seeds: int
    studies: int
    score: float
    difference: float
    retention: float
    difference_over_seeds: float
    """Coverage of a Student t interval over seeds, which treats the documents as known."""
    wrongly_sufficient: float
    """Share of studies that call an adapter sufficient that loses exactly the margin."""
    wrongly_inferior: float


def factor(rng: np.random.Generator, tail: str, count: int) -> Vector:
    """Return positive factors of mean 1."""
    if tail == "normal":
        return np.maximum(1 + 0.2 * rng.standard_normal(count), 0.0)
    if tail == "lognormal":
        return np.exp(0.8 * rng.standard_normal(count) - 0.32)
    exponent = float(tail)
    return (exponent - 1) / exponent * (1 + rng.pareto(exponent, count))


def study(
    rng: np.random.Generator, documents: Documents, seeds: int
) -> tuple[Vector, Vector, Vector, Vector]:
    """Return tokens (E), and losses of the base model (E), full fine-tuning and an adapter (S, E).

    The adapter loses exactly the margin.
    """
    count, tail = documents.count, documents.tail
    length, difficulty = rng.standard_normal((2, count))
    tokens = np.maximum(1.0, np.round(150 * np.exp(LENGTH_SD * length)))
    difficulty = SHARED * length + math.sqrt(1 - SHARED**2) * difficulty
    base = np.exp(DIFFICULTY_SD * difficulty)
    own, shared_seed = factor(rng, tail, count), rng.standard_normal(seeds)

    def run() -> Vector:
        seed = SEED_SD * (shared_seed + rng.standard_normal(seeds)) / math.sqrt(2)
        noise = np.exp(NOISE_SD * rng.standard_normal((seeds, count)) - NOISE_SD**2 / 2)
        return (1 + seed[:, None]) * noise

    extra = MARGIN * (1 - FULL)
    other = factor(rng, tail, count)
    full_SE = FULL * base * own * run()
    if documents.is_one_sided:
        return tokens, base, full_SE, full_SE + extra * base * other * run()
    adapter = (FULL + extra) * base * (0.7 * own + 0.3 * other)
    return tokens, base, full_SE, adapter * run()


def outcome(documents: Documents, seeds: int, studies: int) -> Outcome:
    """Simulate studies of one kind."""
    rng, held = np.random.default_rng(0), Counter[str]()
    mean = math.exp(DIFFICULTY_SD**2 / 2 + SHARED * DIFFICULTY_SD * LENGTH_SD)  # Σ loss / Σ tokens
    truth = {"score": FULL * mean, "difference": -MARGIN * (1 - FULL) * mean}
    for _ in range(studies):
        tokens, base, full_SE, adapter_SE = study(rng, documents, seeds)
        difference_SE = full_SE - adapter_SE
        kept = retention(-adapter_SE, -full_SE, chance=-base, width=math.inf, weights_E=tokens)
        intervals = {
            "score": mean_score(full_SE, ends=INFINITE, weights_E=tokens).interval(),
            "difference": paired_difference(
                difference_SE, width=math.inf, weights_E=tokens
            ).interval(),
            "retention": (kept.low, kept.high),
            "seeds": interval_of_mean(np.average(difference_SE, axis=1, weights=tokens)),
        }
        truths = {**truth, "retention": 1 - MARGIN, "seeds": truth["difference"]}
        held.update(name for name, (low, high) in intervals.items() if low <= truths[name] <= high)
        [test] = rank_tests(
            {8: difference_SE},
            margin=f"{100 * MARGIN:g}%",
            gains={8: base - full_SE},
            weights={8: tokens},
            metric=NATS_PER_TOKEN,
        )
        held[test.decision] += 1
    return Outcome(
        documents=documents.name,
        seeds=seeds,
        studies=studies,
        score=held["score"] / studies,
        difference=held["difference"] / studies,
        retention=held["retention"] / studies,
        difference_over_seeds=held["seeds"] / studies,
        wrongly_sufficient=held["sufficient"] / studies,
        wrongly_inferior=held["inferior"] / studies,
    )


def kinds() -> list[Documents]:
    """Return the test sets that are simulated."""
    spreads = {"normal": "normal", "lognormal": "lognormal", "2.5": "Pareto 2.5"}
    return [
        Documents(
            name=f"{count}, {label}{', few lose' * is_one_sided}",
            count=count,
            tail=tail,
            is_one_sided=is_one_sided,
        )
        for is_one_sided in (False, True)
        for tail, label in spreads.items()
        for count in (100, 300, 1000)
    ]


def page(rows: list[Outcome]) -> str:
    """Return the outcomes as Markdown."""
    head = ["documents", "seeds", "mean loss", "difference", "retention"]
    head += ["difference, t over seeds", "wrongly sufficient", "wrongly inferior"]
    lines = [f"| {' | '.join(head)} |", "| --- |" + " ---: |" * 7]
    for row in rows:
        shares = (row.score, row.difference, row.retention, row.difference_over_seeds)
        shares += (row.wrongly_sufficient, row.wrongly_inferior)
        cells = [row.documents, str(row.seeds), *(f"{100 * share:.1f} %" for share in shares)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Simulate, print the page and write it."""
    parser = argparse.ArgumentParser(description="Simulate intervals of losses.")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    asked = parser.parse_args()
    began = time.monotonic()
    studies = QUICK_STUDIES if asked.quick else STUDIES
    rows = []
    for documents in kinds():
        for seeds in (3, 5, 8):
            rows.append(outcome(documents, seeds, studies))
            print(page(rows[-1:]).splitlines()[-1], flush=True)
    if asked.quick:
        return
    facts = {
        "outcomes": [asdict(row) for row in rows],
        "seconds": round(time.monotonic() - began),
        "date": time.strftime("%Y-%m-%d"),
        "provenance": provenance(),
    }
    (asked.out / "losses.json").write_text(json.dumps(facts, indent=1) + "\n")
    (asked.out / "losses.md").write_text(page(rows))


if __name__ == "__main__":
    main()
