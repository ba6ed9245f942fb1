"""Which rank suffices, as far as the tests against full fine-tuning show it.

    for verdict in verdicts(data): verdict.name, verdict.ranks("sufficient")

No other section tests anything; see `answers/statistics.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lowrank_study.answers.paired_scores import TRUNCATED
from lowrank_study.answers.rows import groups, records
from lowrank_study.reporting.display import (
    NARROW_SPACE,
    Column,
    Table,
    adapter_name,
    capitalised,
    counted,
    enumeration,
    is_missing,
    percent,
    points,
    rank_list,
    span,
)
from lowrank_study.reporting.section import Finding, Section
from lowrank_study.reporting.setting import SettingData
from lowrank_study.tasks.metric import Metric


def section(data: SettingData) -> Section | None:
    """Show which ranks were tested and with what result; nothing without a test."""
    if not len(data.comparison):
        return None
    margin = margin_of(records(data.comparison), data.metric)
    return Section(
        name=f"sufficient{data.suffix}",
        title="Which rank suffices?",
        findings=[verdict.finding for verdict in verdicts(data)],
        reading=[
            f"A rank is sufficient if its {data.metric.label} is shown to be less than {margin} "
            f"{data.metric.worse} full fine-tuning’s (a non-inferiority test), and inferior if it "
            f"is shown to be further {data.metric.worse}. All other ranks are undecided: more "
            "seeds or test examples can decide them.",
            "Tests for sufficiency go from the highest rank down. They stop at the first rank that "
            "fails the test or lost a run. Tests for inferiority go from the lowest rank up.",
            *_about_lead(data),
            *_about_functional_rank(data),
        ],
        tables=[_table(data, margin)],
    )


def _about_functional_rank(data: SettingData) -> list[str]:
    if TRUNCATED not in set(data.comparison["method"]):
        return []
    return [
        "The functional rank is the lowest rank that suffices when full fine-tuning’s ΔW is "
        "truncated to it."
    ]


def margin_of(rows: Sequence[Mapping[str, Any]], metric: Metric) -> str:
    """Return the margin with its unit, from the rows of a comparison."""
    known = [row["margin"] for row in rows if not is_missing(row["margin"])]
    in_score = points(sum(known) / len(known), metric) if known else f"unknown {metric.points}"
    if not (share := rows[0]["margin_share"]):
        return in_score
    return f"{100 * share:g}{NARROW_SPACE}% of full fine-tuning’s gain ({in_score})"


def _about_lead(data: SettingData) -> list[str]:
    metric = data.metric
    if not data.comparison["chance"].notna().any():
        return []
    return [
        f"The lead over {metric.baseline} is {_over(metric)} ({metric.chance}). "
        "Its interval is Fieller’s, over seeds and test examples."
    ]


def _over(metric: Metric) -> str:
    if metric.higher_is_better:
        return f"the {metric.label} minus {metric.baseline}"
    return f"the {metric.label} of {metric.baseline} minus the adapter’s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the tests of one method and target show."""

    method: str
    """method of the tested runs; `TRUNCATED` for truncated updates"""
    name: str
    """what was tested, for prose"""
    rows: list[dict[str, Any]]
    """rows of the comparison, by rising rank"""
    metric: Metric
    """what the score is"""

    @property
    def tried(self) -> list[int]:
        """Return every rank, rising."""
        return [int(row["adapter_rank"]) for row in self.rows]

    @property
    def is_adapter(self) -> bool:
        """Tell whether an adapter was trained at these ranks."""
        return self.method not in {"head", TRUNCATED}

    @property
    def is_tested(self) -> bool:
        """Tell whether any rank could be tested."""
        return not all(is_missing(row["lower_limit"]) for row in self.rows)

    @property
    def margin(self) -> str:
        """Return the margin with its unit."""
        return margin_of(self.rows, self.metric)

    @property
    def basis(self) -> str:
        """Return how many seeds and test examples the tests rest on."""
        seeds = sorted({int(row["seeds"]) for row in self.rows})
        unit = "seed" if seeds == [1] else "seeds"
        examples = max(int(row["examples"]) for row in self.rows)
        return f"{span(f'{seeds[0]}', f'{seeds[-1]}')} {unit}, {counted(examples, 'test example')}"

    def ranks(self, decision: str) -> list[int]:
        """Return the ranks with this decision, rising."""
        return [int(row["adapter_rank"]) for row in self.rows if row["decision"] == decision]

    def listed(self, ranks: list[int], verb: str, plural: str) -> str:
        """Return ranks with a verb in the right number."""
        return f"{rank_list(ranks, self.tried)} {verb if len(ranks) == 1 else plural}"

    @property
    def finding(self) -> Finding:
        """Return the verdict in words."""
        if self.method == "head":
            return Finding(topic="Linear probe, tested", text=self._of_probe())
        if self.method == TRUNCATED:
            topic, name = "Functional rank, tested", "functional rank of full fine-tuning’s update"
        else:
            topic, name = f"Sufficient rank, {self.name}", f"sufficient rank of {self.name}"
        return Finding(topic=topic, text=self._of_ranks(name))

    def _of_probe(self) -> str:
        shown = {
            "sufficient": f"is shown to lose less than {self.margin}, so the ranks that suffice "
            "do not show that the task needs any ΔW",
            "inferior": f"is shown to lose more than {self.margin}",
            "open": f"is neither shown to lose less than {self.margin} nor to lose more",
        }
        return (
            f"The linear probe, which trains only the head, {shown[self.rows[0]['decision']]} "
            f"(basis: {self.basis})."
        )

    def _of_ranks(self, name: str) -> str:
        if not self.is_tested:
            return (
                f"The {name} can’t be tested: no rank has two done seeds with stored predictions "
                "for both this rank and full fine-tuning."
            )
        enough, low, unsure = map(self.ranks, ("sufficient", "inferior", "open"))
        shown = []
        if enough:
            text = self.listed(enough, "is shown", "are shown")
            shown.append(f"{text} to lose less than {self.margin}")
        if low:
            text = self.listed(low, "is shown", "are shown")
            shown.append(f"{text} to lose more{'' if enough else f' than {self.margin}'}")
        sentences = [f"The {name} {_where(low, unsure, enough)}"]
        sentences += [capitalised(enumeration(shown))] if shown else []
        if unsure:
            beyond = "" if shown else f" at a margin of {self.margin}"
            sentences.append(
                capitalised(self.listed(unsure, "is undecided", "are undecided")) + beyond
            )
        sentences += [*self._lost(), *self._stray(), *self._retention(enough)]
        return f"{'. '.join(sentences)} (basis: {self.basis})."

    def _lost(self) -> list[str]:
        lossy = [int(row["adapter_rank"]) for row in self.rows if row["lost"]]
        if not lossy:
            return []
        lost = counted(sum(int(row["lost"]) for row in self.rows), "run")
        return [
            f"{capitalised(rank_list(lossy, self.tried))} lost {lost}, so neither "
            f"{'this rank' if len(lossy) == 1 else 'these ranks'} nor lower ones can be shown to "
            "suffice"
        ]

    def _stray(self) -> list[str]:
        """Name the ranks beyond the end of a sequence that by themselves lie clearly below."""
        stray = [
            int(row["adapter_rank"])
            for row in self.rows
            if row["decision"] == "open" and row["upper_limit"] < -row["margin"]
        ]
        if not stray:
            return []
        alone = self.listed(stray, "loses", "lose")
        return [
            f"Taken alone, {alone} more than the margin although a lower rank does not. "
            f"{capitalised(self.metric.label)} does not always improve with rank here"
        ]

    def _retention(self, enough: list[int]) -> list[str]:
        """Describe the smallest sufficient rank, or else the rank with the best score."""
        if all(is_missing(row["chance"]) for row in self.rows):
            return []
        tested = [row for row in self.rows if row["seeds"] > 1]
        best = max(tested, key=lambda row: self.metric.worth(row["score"]))
        row = next((row for row in tested if int(row["adapter_rank"]) in enough[:1]), best)
        if not row["retention_bounded"]:
            return [
                f"Full fine-tuning is not shown to score {self.metric.better} "
                f"{self.metric.baseline}, so a rank that matches it shows nothing"
            ]
        low, high = percent(row["retention_low_95"]), percent(row["retention_high_95"])
        return [
            f"Rank {int(row['adapter_rank'])} keeps {percent(row['retention'])} of full "
            f"fine-tuning’s lead over {self.metric.baseline}, 95{NARROW_SPACE}% interval {low} to "
            f"{high}"
        ]


def verdicts(data: SettingData) -> list[Verdict]:
    """Return what the tests show, one verdict per method and target."""
    return [
        Verdict(
            method=key["method"],
            name=adapter_name(**key),
            rows=records(group.sort_values("adapter_rank")),
            metric=data.metric,
        )
        for key, group in groups(data.comparison, ["method", "target"])
    ]


def was_tested(data: SettingData) -> bool:
    """Tell whether any rank could be tested against full fine-tuning."""
    return sequences(data) > 0


def sequences(data: SettingData) -> int:
    """Count the sequences of tests; each has two bounds that can be wrong."""
    return sum(verdict.is_tested for verdict in verdicts(data))


def _where(inferior: list[int], unsure: list[int], enough: list[int]) -> str:
    """Say where the smallest sufficient rank lies among the ranks tried."""
    if not enough:
        if not unsure:
            return "is above every rank that was tried"
        return f"is above {inferior[-1]}; no upper bound is shown" if inferior else "is undecided"
    if not inferior:
        return f"is at most {enough[0]}{'' if unsure else ', the lowest tried'}"
    return (
        f"lies between {unsure[0]} and {enough[0]}"
        if unsure
        else f"is {enough[0]} among those tried"
    )


_RETENTION_NOTE = (
    " Retention is (a−c)/(f−c), where a is the adapter’s score, f full fine-tuning’s and c {}. "
    "It is unbounded if full fine-tuning is not shown to score {} {}."
)
_RETENTION_COLUMNS = (
    Column("retention", "retention", "percent", "share of full fine-tuning’s lead kept"),
    Column("retention_low_95", "95 % low", "percent", "95 % interval, lower end"),
    Column("retention_high_95", "95 % high", "percent", "95 % interval, upper end"),
    Column("retention_bounded", "bounded", "text", "whether the interval is bounded"),
)


def _difference(metric: Metric) -> str:
    if metric.higher_is_better:
        return "the score less full fine-tuning’s"
    return "full fine-tuning’s score less the adapter’s"


def _table(data: SettingData, margin: str) -> Table:
    metric, has_chance = data.metric, data.comparison["chance"].notna().any()
    note = _RETENTION_NOTE.format(metric.baseline, metric.better, metric.baseline)
    return Table(
        name=f"sufficient_rank{data.suffix}",
        title="Sufficient rank",
        note=(
            f"One row per target and rank. The difference is {_difference(data.metric)}, in "
            f"{data.metric.points}, over runs paired by seed and test example. Low and high are "
            "one-sided 95 % limits over seeds and test examples (crossed random effects, "
            "Satterthwaite’s degrees of freedom), at all looks together if seeds were added. A "
            f"rank is sufficient if low is above −{margin} and inferior if high is below it."
            + (note if has_chance else "")
        ),
        frame=data.comparison,
        columns=data.columns(
            "method target adapter_rank",
            Column("seeds", "pairs", "count", "seeds with both runs done and predictions kept"),
            Column("lost", "lost", "count", "runs that diverged or failed"),
            Column("difference", "difference", "points", f"mean, in {data.metric.points}"),
            Column("lower_limit", "low", "points", "one-sided 95 % limit"),
            Column("upper_limit", "high", "points", "one-sided 95 % limit"),
            Column("decision", "decision", "text", "sufficient, inferior, or open (undecided)"),
            *(_RETENTION_COLUMNS if has_chance else ()),
        ),
    )
