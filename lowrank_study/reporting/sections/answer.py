"""The answer of a report in at most five lines: which rank suffices and how sure that is.

for line in answer(data): print(line)
"""

from lowrank_study.answers.roles import in_order
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
MOST_ROLES = 3
"""A target that adapts more roles is named without them."""
UNDECIDED = (
    "An undecided rank is shown neither to suffice nor to fall short: more seeds or test examples "
    "can decide it."
)


def answer(data: SettingData) -> list[str]:
    """Return the answer of one setting, at most five lines."""
    found = verdicts(data)
    tested = [one for one in found if one.is_adapter and one.is_tested]
    probe = any(one.method == "head" and one.ranks("sufficient") for one in found)
    lines = _of_tests(data, tested) if tested else _of_intervals(data)
    return [*lines, _trained(data, probe_suffices=probe)]


def _of_tests(data: SettingData, tested: list[Verdict]) -> list[str]:
    outcomes: dict[tuple[str, str], list[str]] = {}
    for verdict in sorted(tested, key=lambda one: not one.ranks("sufficient")):
        target = str(verdict.rows[0]["target"])
        outcomes.setdefault(_outcome(verdict), []).append(f"{verdict.name}{_roles(data, target)}")
    first = tested[0]
    lines = _lines(outcomes, see="Which rank suffices?")
    meaning = [
        f"A rank suffices if its test {first.metric.label} is less than {first.margin} "
        f"{first.metric.worse} full fine-tuning’s. "
        f"{'For each method, the' if len(tested) > 1 else 'The'} risk of wrongly calling a rank "
        f"sufficient is at most {100 * ERROR:g}{NARROW_SPACE}% ({first.basis})."
    ]
    if any(one.ranks("open") for one in tested):
        meaning.append(UNDECIDED)
    return [*lines, *(meaning if len(lines) < MOST_OUTCOMES else [" ".join(meaning)])]


def _roles(data: SettingData, target: str) -> str:
    """Return in brackets which matrices a target adapts, as far as the spectra show it."""
    inside = data.modules[data.modules["layer"].notna() & (data.modules["target"] == target)]
    roles = [printable(role) for role in in_order(inside["role"])]
    return f" ({enumeration(roles)})" if 0 < len(roles) <= MOST_ROLES else ""


def _outcome(verdict: Verdict) -> tuple[str, str]:
    """Return the sentence before and after the names of the methods."""
    enough, low, unsure = map(verdict.ranks, ("sufficient", "inferior", "open"))
    others = []
    if low:
        others.append(verdict.listed(low, "does not", "do not"))
    if unsure:
        others.append(verdict.listed(unsure, "is undecided", "are undecided"))
    if not others:
        return f"Rank {enough[0]}, the lowest tried, suffices for", ""
    head = f"Rank {enough[0]} suffices for" if enough else "No rank is shown to suffice for"
    return head, f"; {enumeration(others)}"


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
        lowest += " of"
        where = f" {'with' if len(inside) else 'has'} a mean inside full fine-tuning’s interval"
        outcomes.setdefault((lowest, where), []).append(adapter_name(**key))
    seeds = counted(int(full["n"]), "seed")
    return [
        *_lines(outcomes, see=f"{data.metric.label.capitalize()} against adapter rank"),
        f"The report tests no difference ({seeds}), so it does not show which rank suffices.",
    ]


def _lines(outcomes: dict[tuple[str, str], list[str]], *, see: str) -> list[str]:
    lines = [f"{head} {enumeration(names)}{rest}." for (head, rest), names in outcomes.items()]
    if len(lines) <= MOST_OUTCOMES:
        return lines
    left = counted(len(lines) - MOST_OUTCOMES + 1, "other outcome")
    return [*lines[: MOST_OUTCOMES - 1], f"The section “{see}” shows {left}."]


def _trained(data: SettingData, *, probe_suffices: bool) -> str:
    """Say what was trained, and which scores the ranks lie between."""
    setting = f"{printable(data.setting.model)} on {printable(data.setting.task)}"
    parts = []
    if (full := full_row(data)) is not None:
        parts.append(f"full fine-tuning {_mean(full)}")
    parts += [
        f"a linear probe{', which also suffices,' if probe_suffices else ''} {_mean(probe)}"
        for probe in records(data.chosen[data.chosen["method"] == "head"])
    ]
    chance = data.chosen["chance"].dropna()
    if len(chance):
        parts.append(f"{data.metric.baseline} {chance.iloc[0]:.3f}")
    return f"Test {data.metric.label} of {setting}: {', '.join(parts) or 'see below'}."


def _mean(row: dict[str, float]) -> str:
    interval = f"95{NARROW_SPACE}% interval {row['test_low_95']:.3f}–{row['test_high_95']:.3f}"
    return f"{row['mean_test_score']:.3f}" + (f" ({interval})" if row["n"] > 1 else "")
