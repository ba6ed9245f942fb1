"""Simulate sweeps whose seeds are added while the answer is open.

python benchmarks/stopping.py            # about ten minutes on one core
python benchmarks/stopping.py --quick    # few sweeps, writes nothing: checks that it runs

Each simulated sweep has eight ranks that share the seeds of full fine-tuning. The tests and the
rule that adds seeds are those of `lowrank_study/answers/`. `results/stopping.md` gives, for each
plan, how often a claim was wrong, how many ranks were decided, and how many runs that took.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy import stats
from simulation import simulated

from lowrank_study.answers.looks import Looks
from lowrank_study.answers.statistics import ERROR
from lowrank_study.answers.sufficient_rank import RankTest, rank_tests
from lowrank_study.provenance import provenance

HERE = Path(__file__).parent
MARGIN = 0.02
ERROR_RATES = "Error rates"
SWEEPS, QUICK_SWEEPS = 2000, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What is simulated."""

    name: str
    full: float
    """Accuracy of full fine-tuning."""
    losses: tuple[float, ...]
    """True loss of each rank, rising ranks."""
    seed_sd: float
    """Standard deviation of a run's accuracy over seeds."""
    collapsing: tuple[float, ...]
    """Probability that a run collapses: full fine-tuning, then each rank."""

    @property
    def accuracies(self) -> list[float]:
        """Accuracies of the seeds that learn, so that the true losses hold for all seeds."""
        means = [self.full, *(self.full - loss for loss in self.losses)]
        if not self.collapsing:
            return means
        return [(mean - p / 2) / (1 - p) for mean, p in zip(means, self.collapsing, strict=True)]


class Uncorrected(Looks):
    """An ordinary test at every look, which nobody should do."""

    def levels(self, error: float) -> tuple[float, ...]:
        """Return the whole error rate for every look."""
        return (error,) * len(self.seeds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a plan did in all simulated sweeps of one truth."""

    truth: str
    plan: str
    sweeps: int
    wrong_sufficient: float
    """Share of sweeps with a rank called sufficient that loses the margin or more."""
    wrong_inferior: float
    """Share of sweeps with a rank called inferior that loses the margin or less."""
    decided: float
    """Mean share of ranks that were decided."""
    runs: float
    """Mean number of runs of a configuration, full fine-tuning included."""

    @property
    def verdict(self) -> str:
        """Return "missed" if an error rate is above 5 % by more than chance explains."""
        most = stats.binom.ppf(0.99, self.sweeps, ERROR) / self.sweeps
        return "met" if max(self.wrong_sufficient, self.wrong_inferior) <= most else "missed"


def swept(differences: Sequence[np.ndarray], looks: Looks) -> tuple[list[RankTest], list[int]]:
    """Add seeds to the ranks until no test is open; return the tests and the seeds."""
    seeds = [looks.seeds[0]] * len(differences)
    while True:
        at_look = {rank: x_SE[: seeds[rank]] for rank, x_SE in enumerate(differences)}
        tests = rank_tests(at_look, margin=MARGIN, looks=looks)
        if all(test.stop for test in tests):
            return tests, seeds
        for test in tests:
            if not test.stop:
                seeds[test.rank] = looks.following(seeds[test.rank])


def outcomes(truth: Truth, plans: dict[str, Looks], sweeps: int) -> list[Outcome]:
    """Simulate sweeps, and carry out all plans on each."""
    most = max(looks.seeds[-1] for looks in plans.values())
    totals = {name: np.zeros(4) for name in plans}
    for correct in simulated(
        sweeps=sweeps,
        seeds=most,
        accuracies=truth.accuracies,
        seed_sd=truth.seed_sd,
        collapsing=truth.collapsing,
    ):
        full = correct[0].astype(np.int8)
        differences = [run - full for run in correct[1:]]
        for name, looks in plans.items():
            tests, seeds = swept(differences, looks)
            pairs = [(test.decision, loss) for test, loss in zip(tests, truth.losses, strict=True)]
            totals[name] += (
                any(decision == "sufficient" and loss >= MARGIN for decision, loss in pairs),
                any(decision == "inferior" and loss <= MARGIN for decision, loss in pairs),
                np.mean([decision != "open" for decision, _ in pairs]),
                (sum(seeds) + max(seeds)) / (len(seeds) + 1),
            )
    made = []
    for name, total in totals.items():
        sufficient, inferior, decided, runs = map(float, total / sweeps)
        made.append(
            Outcome(
                truth=truth.name,
                plan=name,
                sweeps=sweeps,
                wrong_sufficient=sufficient,
                wrong_inferior=inferior,
                decided=decided,
                runs=runs,
            )
        )
    return made


def fixed(seeds: int) -> Looks:
    """Return the plan of an ordinary sweep."""
    return Looks(seeds=(seeds,), spending="obrien_fleming")


ADDED = tuple(range(3, 11))
SEQUENTIAL = Looks(seeds=ADDED, spending="obrien_fleming")
ERRORS = {
    "sequential, 3 to 10 seeds": SEQUENTIAL,
    "the same, Pocock type": Looks(seeds=ADDED, spending="pocock"),
    "sequential, 4, 6 … 10 seeds": Looks(seeds=(4, 6, 8, 10), spending="obrien_fleming"),
    "10 seeds at once": fixed(10),
    "ordinary test at 3 to 10 seeds": Uncorrected(seeds=ADDED, spending=""),
}
POWER = {**{f"{seeds} seeds at once": fixed(seeds) for seeds in (3, 6, 8, 12)}, **ERRORS}
LOSSES = (0.06, 0.04, 0.025, 0.015, 0.008, 0.003, 0.0, 0.0)
RANKS = len(LOSSES)


def truth(
    name: str,
    losses: Sequence[float],
    *,
    full: float = 0.78,
    seed_sd: float = 0.007,
    collapsing: Sequence[float] = (),
) -> Truth:
    """Return a truth; by default the one that rotten_tomatoes resembles."""
    return Truth(
        name=name,
        full=full,
        losses=tuple(losses),
        seed_sd=seed_sd,
        collapsing=tuple(collapsing),
    )


AT_MARGIN = [MARGIN] * RANKS
HELD = (
    truth("all ranks lose the margin", AT_MARGIN),
    truth("the same, seeds vary little", AT_MARGIN, full=0.9, seed_sd=0.004),
    truth("the same, seeds vary much", AT_MARGIN, full=0.9, seed_sd=0.02),
    truth("the same, 5 % of all runs collapse", AT_MARGIN, collapsing=[0.05] * (RANKS + 1)),
    truth("three ranks lose the margin", [0.05, 0.03, *[MARGIN] * 3, 0.01, 0.0, 0.0]),
    truth("no rank loses anything", [0.0] * RANKS),
)
"""Truths under which the error rates must hold."""
SKEWED = truth(
    "5 % of the adapters’ runs collapse, the others lose nothing",
    AT_MARGIN,
    full=0.9,
    collapsing=[0.0, *[0.05] * RANKS],
)
"""The mean loss is the margin, but few seeds show it."""
USUAL = (
    truth("losses of 6 to 0 points", LOSSES),
    truth("the same, seeds vary little", LOSSES, full=0.9, seed_sd=0.004),
)


def all_outcomes(sweeps: int) -> dict[str, list[Outcome]]:
    """Simulate everything, under the headings of the page."""
    return {
        ERROR_RATES: [each for one in HELD for each in outcomes(one, ERRORS, sweeps)],
        "A loss that few seeds show": outcomes(SKEWED, POWER, sweeps),
        "Decisions and runs": [each for one in USUAL for each in outcomes(one, POWER, sweeps)],
    }


def page(found: dict[str, list[Outcome]]) -> str:
    """Return all outcomes as Markdown."""
    lines = []
    for title, rows in found.items():
        is_target = title == ERROR_RATES
        head = ["truth", "plan", "wrongly sufficient", "wrongly inferior", "decided", "runs"]
        head += ["target ≤ 5 %"] if is_target else []
        lines += [f"## {title}", "", f"| {' | '.join(head)} |"]
        lines.append("| --- | --- |" + " ---: |" * 4 + " --- |" * is_target)
        for row in rows:
            shares = (row.wrong_sufficient, row.wrong_inferior, row.decided)
            cells = [row.truth, row.plan, *(f"{100 * share:.1f} %" for share in shares)]
            cells += [f"{row.runs:.1f}", *([row.verdict] if is_target else [])]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Simulate, print the page and write it."""
    parser = argparse.ArgumentParser(description="Simulate sweeps whose seeds are added.")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    asked = parser.parse_args()
    began = time.monotonic()
    found = all_outcomes(QUICK_SWEEPS if asked.quick else SWEEPS)
    print(page(found))
    if asked.quick:
        return
    facts = {
        "outcomes": {title: [asdict(row) for row in rows] for title, rows in found.items()},
        "margin": MARGIN,
        "seconds": round(time.monotonic() - began),
        "date": time.strftime("%Y-%m-%d"),
        "provenance": provenance(),
    }
    (asked.out / "stopping.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    (asked.out / "stopping.md").write_text(page(found))


if __name__ == "__main__":
    main()
