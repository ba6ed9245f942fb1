"""Claims on the spectra of full updates."""

import pytest

from lowrank_study.claims.measures.update_spectra import full_update
from tests.claims.measures.synthetic import evidence, lacking, only, runs_of, spectra_of


def test_spectra_of_resolvable_layers() -> None:
    runs = runs_of()
    found = evidence(runs=runs, spectra=spectra_of(runs))
    mean = only(full_update(found, "energy_rank_90", ["query"], over=None))
    assert mean.value == pytest.approx(102.5)
    share = only(full_update(found, "energy_rank_90", None, over="dimension"))
    assert share.value == pytest.approx(102.5 / 200)
    first = only(full_update(found, "energy_rank_90", None, over=None, layer="first"))
    last = only(full_update(found, "energy_rank_90", None, over=None, layer="last"))
    assert (first.value, last.value) == (pytest.approx(102.0), pytest.approx(103.0))
    assert "a column stable_rank" in lacking(full_update(found, "stable_rank", None, None))
    assert "full fine-tuning" in lacking(full_update(found, "energy_rank_90", ["key"], None))
