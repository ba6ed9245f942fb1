"""The answer of a report in at most five lines: which rank suffices and how sure that is.

for line in answer(data): print(line)
"""

from lowrank_study.answers.rows import groups, records
from lowrank_study.answers.statistics import ERROR
from lowrank_study.reporting.display import (
    NARROW_SPACE,
    adapter_name,
    counted,
    enumeration,
    printable,
)
from lowrank_study.reporting.sections.sufficient_rank import Verdict, verdicts
from lowrank_study.reporting.setting import SettingData, full_row

MOST_OUTCOMES = 3
"""Lines for what the tests show; further methods are counted."""


def answer(data: SettingData) -> list[str]:
    """Return the answer of one setting, at most five lines."""
    tested = [one for one in verdicts(data) if one.is_adapter and one.is_tested]
    return [*(_of_tests(tested) if tested else _of_intervals(data)), _trained(data)]


def _of_tests(tested: list[Verdict]) -> list[str]:
    outcomes: dict[tuple[str, str], list[str]] = {}
    for verdict in sorted(tested, key=lambda one: not one.ranks("sufficient")):
        outcomes.setdefault(_outcome(verdict), []).append(verdict.name)
    first = tested[0]
    return [
        *_lines(outcomes, see="Which rank suffices?"),
        f"A rank suffices if its test {first.metric.label} is less than {first.margin} "
        f"{first.metric.worse} full fine-tuning’s. "
        f"{'For each method, the' if len(tested) > 1 else 'The'} risk of wrongly calling a rank "
        f"sufficient is at most {100 * ERROR:g}{NARROW_SPACE}% ({first.basis}).",
    ]


def _outcome(verdict: Verdict) -> tuple[str, str]:
    """Return the sentence before and after the name of the method."""
    enough, low, unsure = map(verdict.ranks, ("sufficient", "inferior", "open"))
    others = []
    if low:
        others.append(verdict.listed(low, "does not", "do not"))
    if unsure:
        others.append(verdict.listed(unsure, "is undecided", "are undecided"))
    head = f"Rank {enough[0]} suffices" if enough else "No rank is shown to suffice"
    return head, f"; {enumeration(others)}" if others else ", the lowest tried"


def _of_intervals(data: SettingData) -> list[str]:
    full = full_row(data)
    if full is None:
        return ["No run of full fine-tuning is done, so no rank can be compared with it."]
    rows = data.chosen[data.chosen["adapter_rank"].notna()]
    if not len(rows):
        return ["No adapter run with a rank is done, so nothing is compared with full fine-tuning."]
    if full["n"] < 2:
        return ["Full fine-tuning has one seed, so the data do not show which rank suffices."]
    outcomes: dict[tuple[str, str], list[str]] = {}
    for key, group in groups(rows, ["method", "target"]):
        inside = group[group["mean_test_score"].between(full["test_low_95"], full["test_high_95"])]
        lowest = f"Rank {inside['adapter_rank'].min()} is the lowest" if len(inside) else "No rank"
        verb = "" if len(inside) else "has its mean "
        where = f" {verb}inside full fine-tuning’s 95{NARROW_SPACE}% interval"
        outcomes.setdefault((lowest, where), []).append(adapter_name(**key))
    seeds = counted(int(full["n"]), "seed")
    return [
        *_lines(outcomes, see=f"{data.metric.label.capitalize()} against adapter rank"),
        f"No difference was tested ({seeds}), so this does not show that a rank suffices.",
    ]


def _lines(outcomes: dict[tuple[str, str], list[str]], *, see: str) -> list[str]:
    lines = [f"{head} for {enumeration(names)}{rest}." for (head, rest), names in outcomes.items()]
    if len(lines) <= MOST_OUTCOMES:
        return lines
    left = counted(len(lines) - MOST_OUTCOMES + 1, "other outcome")
    return [*lines[: MOST_OUTCOMES - 1], f"The section “{see}” shows {left}."]


def _trained(data: SettingData) -> str:
    """Say what was trained, and which scores the ranks lie between."""
    setting = f"{printable(data.setting.model)} on {printable(data.setting.task)}"
    parts = []
    if (full := full_row(data)) is not None:
        parts.append(f"full fine-tuning {_mean(full)}")
    parts += [
        f"a linear probe {_mean(probe)}"
        for probe in records(data.chosen[data.chosen["method"] == "head"])
    ]
    chance = data.chosen["chance"].dropna()
    if len(chance):
        parts.append(f"chance {chance.iloc[0]:.3f} ({data.metric.chance})")
    return f"Test {data.metric.label} of {setting}: {', '.join(parts) or 'see below'}."


def _mean(row: dict[str, float]) -> str:
    interval = f"95{NARROW_SPACE}% interval {row['test_low_95']:.3f}–{row['test_high_95']:.3f}"
    return f"{row['mean_test_score']:.3f}" + (f" ({interval})" if row["n"] > 1 else "")
