"""Spectra as tidy tables."""

import numpy as np
import pandas as pd

from lowrank_study.spectra.measures import MEASURES
from lowrank_study.spectra.tables import singular_values_table, spectra_table

FACTS = [
    "run_id", "module", "layer", "role", "out_features", "in_features", "storage_dtype",
    "base_frobenius_norm",
]  # fmt: skip
TABLE = [*FACTS, *(m.name for m in MEASURES if m.value is not None), "resolvable"]


def test_spectra_table(several):
    table = spectra_table("run-1", several)
    assert list(table.columns) == TABLE
    assert len(table) == 5
    assert (table["run_id"] == "run-1").all()
    assert str(table["layer"].dtype) == str(table["energy_rank_90"].dtype) == "Int64"
    assert table["layer"].tolist() == [0, 1, pd.NA, 11, 0]
    assert table["resolvable"].dtype == bool
    assert table["relative_norm"].dtype == np.float64
    assert table["gavish_donoho_rank"].isna().tolist() == [False] * 4 + [True]
    empty = spectra_table("run-1", [])
    assert list(empty.columns) == TABLE
    assert (empty.dtypes == table.dtypes).all()
    both = pd.concat([empty, table], ignore_index=True)
    assert (both.dtypes == table.dtypes).all()


def test_singular_values_table(several):
    table = singular_values_table("run-1", several)
    assert list(table.columns) == [
        "run_id", "module", "layer", "role", "index", "singular_value",
    ]  # fmt: skip
    assert len(table) == sum(s.singular_values.size for s in several)
    first = table[: several[0].singular_values.size]
    np.testing.assert_array_equal(first["singular_value"], several[0].singular_values)
    assert first["index"].tolist() == list(range(1, len(first) + 1))
    empty = singular_values_table("run-1", several[3:4])
    assert len(empty) == 0
    assert (empty.dtypes == table.dtypes).all()
