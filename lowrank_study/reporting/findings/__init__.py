"""The summary in words, computed from the tables: no sentence that a number does not carry.

    for finding in findings(data): print(finding.text, finding.source)

The rules of the wording:

* the first sentences are the answer and stand alone, outside the report too: each names
  what it speaks of, and what limits it is said once, under noise;
* a mean is called inside, below or above the *interval of full fine-tuning*; nothing is
  called equal, better or significant, because neither was tested;
* what was tested, where it was, is the sufficient rank, at a margin set beforehand: there a mean
  inside an interval is not brought forward as an answer of its own;
* how many seeds stand behind a statement is said with it, and with one seed no comparison
  is made;
* ranks that the storage format can’t resolve are left out of medians and counted.
"""

from lowrank_study.reporting.findings.completeness import completeness
from lowrank_study.reporting.findings.controls import controls
from lowrank_study.reporting.findings.cost import cost
from lowrank_study.reporting.findings.finding import Finding
from lowrank_study.reporting.findings.functional_rank import functional_rank
from lowrank_study.reporting.findings.rates import rates
from lowrank_study.reporting.findings.score import (
    adapters,
    full_fine_tuning,
    head_alone,
    learnt_nothing,
    noise,
)
from lowrank_study.reporting.findings.spectra import adapter_rank, full_rank, resolution
from lowrank_study.reporting.findings.sufficient import sufficient
from lowrank_study.reporting.tables import SettingData

__all__ = ["Finding", "completeness", "findings"]


def findings(data: SettingData) -> list[Finding]:
    """Give the statements about one setting, the answer first."""
    return [
        full_fine_tuning(data),
        *head_alone(data),
        *adapters(data),
        *sufficient(data),
        *functional_rank(data),
        *learnt_nothing(data),
        *rates(data),
        *cost(data),
        noise(data),
        *full_rank(data),
        *adapter_rank(data),
        *controls(data),
        resolution(data),
    ]
