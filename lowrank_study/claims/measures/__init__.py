"""What is measured of a claim, by name; see `outcome.py` for what a measure is."""

from lowrank_study.claims.measures import (  # noqa: F401  importing registers the measures
    adaptation,
    architectures,
    listings,
    memory,
    noise_levels,
    paper_tables,
    published_numbers,
    rates,
    score,
    serving,
    update_spectra,
    worked_examples,
)
from lowrank_study.claims.measures.outcome import MEASURES

__all__ = ["MEASURES"]
