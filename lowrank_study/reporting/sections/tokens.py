"""How the held-out score follows the training tokens, and when a rank falls behind.

    tokens.section(data).tables[0].frame      # one row a rank

The question is that of Schulman et al., "LoRA Without Regret" (2025), figure 1: at how many tokens
does a rank run out of capacity?
"""

from typing import Any

import pandas as pd

from lowrank_study.answers.curves import BEHIND_COLUMNS, falls_behind, mean_curves
from lowrank_study.answers.rows import groups, records
from lowrank_study.reporting.display import (
    MISSING,
    NARROW_SPACE,
    Column,
    Table,
    adapter_name,
    counted,
    is_missing,
    rank_list,
    span,
)
from lowrank_study.reporting.section import Finding, Section
from lowrank_study.reporting.sections.sufficient_rank import margin_of
from lowrank_study.reporting.sections.tokens_figure import score_against_tokens
from lowrank_study.reporting.setting import SettingData
from lowrank_study.tasks.metric import Margin


def section(data: SettingData) -> Section | None:
    """Show the curves of a language model; nothing if its runs read validation only once."""
    if data.study.curves is None:
        return None
    evaluations = data.study.curves
    evaluations = evaluations[evaluations["run_id"].isin(data.runs["run_id"])]
    if evaluations.loc[evaluations["step"] > 0, "step"].nunique() < 2:
        return None
    behind = _behind(data, evaluations)
    return Section(
        name=f"tokens{data.suffix}",
        title="When does a rank fall behind?",
        figures=[score_against_tokens(data, mean_curves(evaluations, data.runs), behind)],
        findings=_findings(data, behind),
        reading=_reading(data),
        tables=[_table(data, behind)] if len(behind) else [],
    )


def _behind(data: SettingData, evaluations: pd.DataFrame) -> pd.DataFrame:
    """Return `falls_behind` with the sweep's margin; no rows if no rank was tested with one."""
    tested = records(data.comparison)
    if not tested:
        return pd.DataFrame(columns=list(BEHIND_COLUMNS))
    share, margin = tested[0]["margin_share"], tested[0]["margin"]
    allowed = Margin(points=0.0 if share else margin, share=share)
    behind = falls_behind(evaluations, data.runs, margin=allowed, metric=data.metric)
    rows = records(behind)
    return behind.assign(
        onset=[_onset(row) for row in rows], interval=[_interval(row) for row in rows]
    )


def _onset(row: dict[str, Any]) -> str:
    """Say from how many tokens on a rank is behind."""
    if not is_missing(row["behind_from"]):
        return _tokens(row["behind_from"])
    if not is_missing(row["caught_up_at"]):
        return f"only before {_tokens(row['caught_up_at'])}"
    return f"not seen up to {_tokens(row['last_tokens'])}"


def _interval(row: dict[str, Any]) -> str:
    low, high = row["behind_from_low_95"], row["behind_from_high_95"]
    if row["seeds"] < 2:
        return MISSING
    if is_missing(low):
        return f"later than {_tokens(row['last_tokens'])}, or never"
    if is_missing(high):
        return f"{_tokens(low)} or later, or never"
    return span(_tokens(low), _tokens(high))


def _tokens(number: float) -> str:
    return f"{number:,.0f}"


def _findings(data: SettingData, behind: pd.DataFrame) -> list[Finding]:
    if not len(behind):
        text = (
            "No rank is tested: that needs full fine-tuning, evaluated with the base model on "
            "validation, and better than it."
        )
        return [Finding(topic="Not tested", text=text)]
    margin = margin_of(records(behind), data.metric)
    found = []
    for key, group in groups(behind, ["method", "target"]):
        rows = records(group)
        late = [row for row in rows if not is_missing(row["behind_from"])]
        sentences = [_of_rank(row, margin if row is late[0] else "the margin") for row in late]
        tried = [int(row["adapter_rank"]) for row in rows]
        others = [int(row["adapter_rank"]) for row in rows if is_missing(row["behind_from"])]
        if others:
            name, is_one = rank_list(others, tried), len(others) == 1
            than = "the margin" if late else margin
            sentences.append(
                f"{name[0].upper()}{name[1:]} {'is' if is_one else 'are'} not behind by more than "
                f"{than} at the end of training ({_tokens(group['last_tokens'].max())} tokens)."
            )
        found.append(Finding(topic=adapter_name(**key), text=" ".join(sentences)))
    return found


def _of_rank(row: dict[str, Any], margin: str) -> str:
    text = (
        f"Rank {int(row['adapter_rank'])} is behind full fine-tuning by more than {margin} from "
        f"{_tokens(row['behind_from'])} predicted training tokens on"
    )
    if row["behind_from"] == row["first_tokens"]:
        text += ", the first evaluation"
    if row["seeds"] < 2:
        return f"{text}. One seed has no interval."
    return (
        f"{text} (95{NARROW_SPACE}% interval over {counted(int(row['seeds']), 'seed')}: "
        f"{_interval(row)})."
    )


def _reading(data: SettingData) -> list[str]:
    return [
        "A rank can be behind for other reasons than its capacity, such as a learning rate that "
        "was not tuned, or slow learning at first. Capacity is a likely reason if lower ranks fall "
        "behind earlier and the gap then grows.",
        "Each number of tokens is that of an evaluation; the gap may have opened at any time since "
        "the evaluation before, or earlier if it is the first. More evaluations "
        "(trainer.evaluations) locate it better.",
        "The interval is over seeds, at this set of validation documents. Single documents’ "
        f"{data.metric.label} is kept only for the test split, at the end.",
    ]


def _table(data: SettingData, behind: pd.DataFrame) -> Table:
    return Table(
        name=f"behind_full{data.suffix}",
        title="Tokens at which a rank falls behind full fine-tuning",
        note=(
            "One row per rank. A rank is behind at an evaluation if its mean validation "
            f"{data.metric.label} is {data.metric.worse} full fine-tuning’s by more than the "
            f"margin, {margin_of(records(behind), data.metric)}, and is listed if it stays behind "
            "to the end. The gain is that of full fine-tuning’s best evaluation over the base "
            "model, on validation. Limits: from the lower one on, the paired 95 % t interval over "
            "seeds does not exclude being behind; from the upper one on, it shows it."
        ),
        frame=behind,
        columns=data.columns(
            "method target adapter_rank",
            Column("onset", "behind from", "text", "predicted training tokens"),
            Column("interval", "95 % interval", "text", "of these tokens, over seeds"),
            Column("difference", "lead at the end", "points", "negative: behind full fine-tuning"),
            Column("margin", "margin", "points", "largest acceptable loss"),
            Column("seeds", "pairs", "count", "seeds that both have"),
        ),
    )
