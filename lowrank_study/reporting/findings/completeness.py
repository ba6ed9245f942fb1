"""How much of the plan is done, and what became of the rest.

    completeness(study).text      # "2 of 2 planned runs are done."

Every planned run has ended, or there is no report. Runs that are lost are counted first: every
mean is over those that are not.
"""

from lowrank_study.reporting.display import counted, enumeration
from lowrank_study.reporting.findings.finding import Finding
from lowrank_study.reporting.tables import StudyTables


def completeness(study: StudyTables) -> Finding:
    """Say how many planned runs are done, and what became of the others."""
    runs = study.runs
    done = runs["status"] == "done"
    lost = runs["status"].value_counts()
    others = [
        f"{int(lost[status])} {status}" for status in ("diverged", "failed") if status in lost
    ]
    count = int(done.sum())
    text = f"{count} of {counted(study.planned, 'planned run')} {_is(count)} done"
    text += f"; {enumeration(others)}." if others else "."
    unmeasured = int((done & runs["test_accuracy"].isna()).sum())
    if unmeasured:
        text += (
            f" {counted(unmeasured, 'done run')} {'has' if unmeasured == 1 else 'have'} no test "
            f"accuracy and {_is(unmeasured)} left out of every mean."
        )
    elif others:
        text += " Means are over the done runs."
    return Finding(topic="Completeness", text=text, source="runs")


def _is(count: int) -> str:
    return "is" if count == 1 else "are"
