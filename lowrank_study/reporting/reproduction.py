"""Whole experiments one after the other: forecast, trained, reported, beside what papers report.

plan = plan_of(["flagship_rotten_tomatoes"], [load_paper("lora_table6")], results=results)
print(plan.in_words())
for line in plan.carry_out(record="2026-11-22"): print(line)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lowrank_study.config import RunConfig
from lowrank_study.jobs import planned_configs
from lowrank_study.reporting.papers import write_paper
from lowrank_study.reporting.record import record_sweep
from lowrank_study.reporting.sweep_report import report_sweep
from lowrank_study.study.forecast import forecasts, in_words
from lowrank_study.study.papers import Paper, beside, ended
from lowrank_study.study.sweep import sweep_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be run."""

    sweeps: dict[str, list[RunConfig]]
    """Experiment to its runs."""
    papers: Sequence[Paper]
    results: Path

    def in_words(self) -> str:
        """Say how long each experiment will take here; what has ended takes no time."""
        seconds = forecasts(self.sweeps)
        lines = [f"{name}: {in_words(duration)}" for name, duration in seconds.items()]
        total = in_words(sum(seconds.values()))
        return "\n".join([*lines, f"in all {total}; what has ended is not trained again"])

    def carry_out(self, *, record: str) -> Iterator[str]:
        """Train, report, and keep a record of each experiment where `record` names one.

        Yields
        ------
        For each experiment and paper where its report is, and what was found.
        """
        for name, configs in self.sweeps.items():
            sweep_of(configs)
            folder = self.results / "report" / name
            margin = configs[0].margin
            path, found = report_sweep(name, results=self.results, margin=margin, folder=folder)
            yield f"{path}: {found}"
            if record:
                kept = f"{record}_{name}"
                yield str(record_sweep(name, results=self.results, name=kept, margin=margin))
        for paper in self.papers:
            table = beside(paper, *ended(paper, self.results))
            yield str(write_paper(paper, table, self.results / "papers"))


def plan_of(
    experiments: Sequence[str], papers: Sequence[Paper], *, results: Path, scale: str | None
) -> Plan:
    """Plan experiments, and those that papers are held against.

    Raises
    ------
    InputError
        A setting of an experiment can't be.
    """
    names = dict.fromkeys([*experiments, *(paper.experiment for paper in papers)])
    more = [f"scale={scale}"] if scale else []
    sweeps = {
        name: planned_configs(f"experiment={name}", f"results={results}", *more) for name in names
    }
    return Plan(sweeps=sweeps, papers=papers, results=results)
