"""Spectra as tidy tables: a row a matrix, or a row a singular value.

spectra_table("run-1", spectra)[["module", "energy_rank_90", "resolvable"]]
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from lowrank_study.spectra.measures import MEASURES
from lowrank_study.spectra.spectrum import Spectrum

_TABULATED = tuple(measure for measure in MEASURES if measure.value is not None)
SPECTRA_COLUMNS = {
    **dict.fromkeys(["run_id", "module"], "str"),
    "layer": "Int64",
    "role": "str",
    **dict.fromkeys(["out_features", "in_features"], "Int64"),
    "storage_dtype": "str",
    "base_frobenius_norm": "float64",
    **{measure.name: "Int64" if measure.whole else "float64" for measure in _TABULATED},
    "resolvable": "bool",
}


def row(spectrum: Spectrum) -> dict[str, Any]:
    """Return every number of a spectrum: one row of `spectra_table` without run_id.

    Values that an incomplete spectrum leaves open are None, undefined ones NaN. `resolvable`
    refers to `energy_rank_90`.
    """
    return {
        "module": spectrum.module,
        "layer": spectrum.layer,
        "role": spectrum.role,
        "out_features": spectrum.shape[0],
        "in_features": spectrum.shape[1],
        "storage_dtype": spectrum.storage_dtype,
        "base_frobenius_norm": spectrum.base_frobenius_norm,
        **{measure.name: measure.value(spectrum) for measure in _TABULATED if measure.value},
        "resolvable": spectrum.resolvable_at(0.90),
    }


def spectra_table(run_id: str, spectra: Iterable[Spectrum]) -> pd.DataFrame:
    """Return the spectra of one run, a row a matrix, in the order of the spectra."""
    rows = [{"run_id": run_id} | row(spectrum) for spectrum in spectra]
    return pd.DataFrame(rows, columns=list(SPECTRA_COLUMNS)).astype(SPECTRA_COLUMNS)


def singular_values_table(run_id: str, spectra: Iterable[Spectrum]) -> pd.DataFrame:
    """Return the singular values of one run, a row a value; `index` counts from 1.

    Zeros beyond the end of a spectrum have no row.
    """
    kinds = {"run_id": "str", "module": "str", "layer": "Int64", "role": "str", "index": "int64"}
    parts = [
        pd.DataFrame(
            {
                "run_id": run_id,
                "module": spectrum.module,
                "layer": pd.array([spectrum.layer] * spectrum.singular_values.size, dtype="Int64"),
                "role": spectrum.role,
                "index": np.arange(1, spectrum.singular_values.size + 1),
                "singular_value": spectrum.singular_values,
            }
        )
        for spectrum in spectra
        if spectrum.singular_values.size
    ]
    if parts:
        return pd.concat(parts, ignore_index=True)
    kinds["singular_value"] = "float64"
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in kinds.items()})
