"""Reproduce whole experiments: forecast, train and report them, and compare them with papers.

plan = plan_of(["flagship_rotten_tomatoes"], [load_paper("lora_table6")], results=results)
print(plan.in_words())
for line in plan.carry_out(record="2026-11-22"): print(line)
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lowrank_study.answers import measured_controls, truncated_runs
from lowrank_study.answers.measured_controls import measure_controls
from lowrank_study.answers.stopping import fewest, rule_of
from lowrank_study.answers.truncated_runs import truncate_sweep
from lowrank_study.config.arguments import quoted
from lowrank_study.config.grids import planned_configs
from lowrank_study.config.run import RunConfig, composed
from lowrank_study.errors import Unfinished
from lowrank_study.papers.tables import Paper, at_scale, runs_of
from lowrank_study.reporting.papers import record_papers, write_paper
from lowrank_study.reporting.record import record_sweep
from lowrank_study.reporting.sweep_report import report_sweep
from lowrank_study.results import papers_folder, report_folder
from lowrank_study.sweeps.forecast import Forecast, forecasts, in_words, total_of
from lowrank_study.sweeps.outcome import incomplete
from lowrank_study.sweeps.sweep import sweep_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Experiments to run, report and compare with papers."""

    sweeps: dict[str, list[RunConfig]]
    """the runs of each experiment"""
    reported: Sequence[str]
    """experiments with a report and a record"""
    updates: Sequence[str]
    """experiments with truncated updates and controls"""
    papers: Sequence[Paper]
    """papers whose numbers are compared"""
    results: Path
    """folder of the run store and the pages"""

    def in_words(self) -> str:
        """Return how long each experiment will take on this machine; ended runs take no time."""
        lines = times_in_words(self.sweeps)
        if studied := [name for name in self.sweeps if name in self.updates]:
            lines.append(f"truncated updates and controls take more time: {', '.join(studied)}")
        return "\n".join(lines)

    def carry_out(self, *, record: str) -> Iterator[str]:
        """Train and report each experiment, and keep records if `record` names them.

        Yields:
            The path of each report, record and page, with the answer of a report.

        Raises:
            Unfinished: Runs failed or diverged, or rows of their data were left out. It is raised
                at the end, or at once if an experiment has no done run.
        """
        missing: list[str] = []
        for name, configs in self.sweeps.items():
            runs = sweep_of(configs, rule=rule_of(configs))
            missing += incomplete(
                runs,
                planned=len(runs),
                sweep=name,
                results=self.results,
                allow_partial=configs[0].allow_partial,
            )
            if not any(run.status == "done" for run in runs):
                raise Unfinished("\n".join(missing))
            if name in self.updates:
                self._study_updates(name)
            if name not in self.reported:
                continue
            folder = report_folder(self.results) / name
            margin = configs[0].margin
            path, found = report_sweep(name, results=self.results, margin=margin, folder=folder)
            yield f"{path}: {found}"
            if record:
                kept = f"{record}_{name}"
                yield str(record_sweep(name, results=self.results, name=kept, margin=margin))
        for paper in self.papers:
            runs = runs_of(paper, self.results)
            yield str(write_paper(paper, runs, papers_folder(self.results)))
        if record and self.papers:
            yield str(record_papers(self.papers, results=self.results, name=f"{record}_papers"))
        if missing:
            raise Unfinished("\n".join(missing))

    def _study_updates(self, name: str) -> None:
        where = [f"sweep={name}", _results(self.results)]
        truncate_sweep(truncated_runs.read_request(composed("truncate", *where)))
        measure_controls(measured_controls.read_request(composed("measure_controls", *where)))


def plan_of(
    experiments: Sequence[str],
    papers: Sequence[Paper],
    *,
    results: Path,
    updates: Sequence[str] = (),
    scale: str | None = None,
    allow_partial: bool = False,
) -> Plan:
    """Plan experiments and those that reproduce papers.

    Only `experiments` get a report; an experiment of a paper has the paper's page. At a scale,
    sweeps and pages have names of their own (`lora_table6_paper`).

    Raises:
        InputError: A setting of an experiment is not valid.
    """
    names = dict.fromkeys([*experiments, *(paper.experiment for paper in papers)])
    more = [f"allow_partial={str(allow_partial).lower()}"]
    more += [f"scale={scale}"] if scale else []

    def planned(name: str) -> list[RunConfig]:
        sweep = f"sweep={at_scale(name, scale)}"
        return planned_configs(f"experiment={name}", sweep, _results(results), *more)

    return Plan(
        sweeps={at_scale(name, scale): planned(name) for name in names},
        reported=[at_scale(name, scale) for name in experiments],
        updates=[at_scale(name, scale) for name in updates],
        papers=[paper.at_scale(scale) for paper in papers],
        results=results,
    )


def times_in_words(sweeps: Mapping[str, Sequence[RunConfig]]) -> list[str]:
    """Return a line for each sweep on how long it will take, and one for several together."""
    found = forecasts(sweeps)
    fewer = {name: fewest(configs) for name, configs in sweeps.items()}
    least = found if fewer == sweeps else forecasts(fewer)
    times = {name: _between(least[name], most) for name, most in found.items()}
    if len(times) > 1:
        times["total"] = _between(total_of(least.values()), total_of(found.values()))
    *lines, last = (f"{name}: {time}" for name, time in times.items())
    return [*lines, f"{last}; runs that have ended are not trained again"]


def _between(least: Forecast, most: Forecast) -> str:
    """Write how long a sweep takes if its first seeds decide, and if it needs all of them."""
    if least == most:
        return in_words(most)
    return f"{in_words(least)} to {in_words(most).removeprefix('about ')}"


def _results(folder: Path) -> str:
    """Return the override that names a folder, with any characters in its path quoted."""
    return f"results={quoted(str(folder))}"
