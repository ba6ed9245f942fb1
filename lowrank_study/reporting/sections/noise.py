"""What the means and tests of a report rest on, and what they do not cover."""

from lowrank_study.answers.statistics import ERROR
from lowrank_study.reporting.display import NARROW_SPACE, counted, points, span
from lowrank_study.reporting.sections.seeds import is_sequential
from lowrank_study.reporting.sections.sufficient_rank import sequences, was_tested
from lowrank_study.reporting.setting import SettingData
from lowrank_study.tasks.metric import Metric

FEW_SEEDS = 5
"""With fewer seeds the report warns that it can't resolve small differences."""


def noise(data: SettingData) -> list[str]:
    """Return one caveat per source of uncertainty."""
    rows = data.chosen
    least, most = int(rows["n"].min()), int(rows["n"].max())
    seeds = f"{span(str(least), str(most))} {'seed' if most == 1 else 'seeds'} each"
    few = ", too few to resolve small differences" if least < FEW_SEEDS else ""
    caveats = [f"The means are over {seeds}{few}."]
    if most == 1:
        caveats[0] += (
            " The report cannot show how much another seed would differ. It tests no difference."
        )
    else:
        caveats += _intervals(data, most)
    known = rows[rows["test_standard_error"].notna()]
    if len(known):
        error = points(float(known["test_standard_error"].max()), data.metric)
        examples = int(known["test_examples"].min())
        caveats.append(
            f"One {data.metric.label} on {counted(examples, 'test example')} has a standard error "
            f"of up to {error} from sampling the examples, sqrt(p(1−p)/{examples:,}). All runs "
            "share these examples, so most differences between runs vary less. "
            + (
                "Only the tests extend to other test sets."
                if was_tested(data)
                else "All statements hold for this test set only."
            )
        )
    return caveats


def _worsen(metric: Metric) -> str:
    return "fall" if metric.higher_is_better else "rise"


def _intervals(data: SettingData, most: int) -> list[str]:
    intervals = (
        f"The intervals of means are 95{NARROW_SPACE}% Student t intervals over seeds, for this "
        "test set. They show neither that a mean inside full fine-tuning’s interval is equal nor "
        "that a mean outside it differs"
    )
    if not was_tested(data):
        return [f"{intervals}: this report contains no significance test."]
    ends = 2 * sequences(data)
    if is_sequential(data):
        intervals += "; they take no account of the seeds that were added while tests were open"
    return [
        f"{intervals}. There is no correction for comparing many configurations.",
        "Only sufficient and functional ranks and the linear probe are tested. These tests treat "
        "both seeds and test examples as samples, and use the chosen learning rates.",
        f"Each bound of a tested rank has an error rate of {100 * ERROR:g}{NARROW_SPACE}% "
        f"(assuming nearly normal seeds); the chance that any of these {ends} bounds is wrong is "
        f"at most {min(100, 100 * ends * ERROR):g}{NARROW_SPACE}%.",
        "The result covers only the ranks that were trained. It extends to the ranks between them "
        f"if {data.metric.label} does not {_worsen(data.metric)} with rank.",
        f"Even if all of {most} seeds learn, up to "
        f"{100 * (1 - ERROR ** (1 / most)):.0f}{NARROW_SPACE}% of all seeds may fail to "
        f"({100 * (1 - ERROR):g}{NARROW_SPACE}% confidence).",
    ]
