"""How much of the plan is done, and what is missing from the report.

    completeness(study).text      # "2 of 2 planned runs are done."

A report needs every planned run to have ended. Lost runs come first, because every mean is over the
other runs. Then come data or updates that were left out, and differences between averaged runs.
"""

from collections.abc import Iterator, Mapping

from lowrank_study.answers.rows import CONFIGURATION, TUNING, groups
from lowrank_study.reporting.display import counted, enumeration
from lowrank_study.reporting.section import Finding
from lowrank_study.reporting.study import StudyTables

VERSIONS = (
    *("commit", "lowrank_study", "python", "torch", "transformers", "datasets"),
    *("numpy", "scipy", "pandas", "peft", "safetensors"),
)
"""Provenance that can change a run's numbers without being part of its id."""


def completeness(study: StudyTables) -> Finding:
    """State how many planned runs are done, and everything that is missing from the means."""
    return Finding(topic="Completeness", text=" ".join([_counts(study), *gaps(study)]))


def is_complete(study: StudyTables) -> bool:
    """Tell whether every planned run is done and nothing was left out."""
    return bool((study.runs["status"] == "done").all()) and not gaps(study)


def gaps(study: StudyTables) -> list[str]:
    """Return a sentence for everything that was left out or differs between runs."""
    return [
        *(f"{text[:1].upper()}{text[1:].rstrip('.')}." for text in study.left_out),
        *_unevaluated(study),
        *_versions(study),
        *_packs(study),
    ]


def _counts(study: StudyTables) -> str:
    lost = study.runs["status"].value_counts()
    count = int(lost.get("done", 0))
    others = [
        f"{int(lost[status])} {status}" for status in ("diverged", "failed") if status in lost
    ]
    text = f"{count} of {counted(study.planned, 'planned run')} {_is(count)} done"
    if not others:
        return f"{text}."
    means = "" if _unevaluated(study) else " Means are over the done runs."
    return f"{text}; {enumeration(others)}.{means}"


def _unevaluated(study: StudyTables) -> list[str]:
    done = study.runs["status"] == "done"
    count = int((done & study.runs["test_score"].isna()).sum())
    if not count:
        return []
    return [
        f"{counted(count, 'done run')} {'has' if count == 1 else 'have'} no test "
        f"{study.metric.label} and {_is(count)} left out of every mean."
    ]


def _versions(study: StudyTables) -> list[str]:
    """Warn if the runs of one report were trained by different code or libraries."""
    differing = [
        f"{name} {enumeration([f'{_short(value)} ({runs})' for value, runs in values.items()])}"
        for name in VERSIONS
        if isinstance(values := study.provenance.get(name), Mapping)
    ]
    return (
        [f"Runs of different versions are averaged: {'; '.join(differing)}."] if differing else []
    )


def _short(value: str) -> str:
    commit, mark, changes = value.partition("+")
    return commit[:10] + mark + changes if len(commit) == 40 else value


def _packs(study: StudyTables) -> Iterator[str]:
    """Warn if some runs of a configuration shared a pack and others did not."""
    done = study.runs[study.runs["status"] == "done"]
    alone = 0
    for _, rows in groups(done, [*CONFIGURATION, *TUNING]):
        sizes = rows["pack_size"].dropna()
        alone += int((sizes == 1).sum()) if (sizes > 1).any() else 0
    if alone:
        yield (
            f"{counted(alone, 'run')} {'was' if alone == 1 else 'were'} trained alone and other "
            "runs of the same configuration in packs (several in one process). Packs round sums "
            "differently."
        )


def _is(count: int) -> str:
    return "is" if count == 1 else "are"
