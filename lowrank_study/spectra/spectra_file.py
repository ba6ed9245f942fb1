"""The file with the spectra of a run's updates.

save_spectra(path, [spectrum], made_from=run.checkpoint_sha256)
[again] = load_spectra(path)   # bit-identical
"""

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import pyarrow.parquet as pq  # type: ignore[import-untyped, unused-ignore]

from lowrank_study.errors import InputError
from lowrank_study.files import whole_file
from lowrank_study.spectra.spectrum import Spectrum

FORMAT = "lowrank_study.spectra/1"
METADATA_KEY = b"lowrank_study"

SCHEMA = pa.schema(
    [
        ("module", pa.string()),
        ("layer", pa.int64()),
        ("role", pa.string()),
        ("shape", pa.list_(pa.int64(), 2)),
        ("active_shape", pa.list_(pa.int64(), 2)),
        ("storage_dtype", pa.string()),
        ("singular_values", pa.list_(pa.float64())),
        ("frobenius_norm", pa.float64()),
        ("base_frobenius_norm", pa.float64()),
        ("rounding_edge", pa.float64()),
        ("rounding_frobenius_norm", pa.float64()),
        ("factored", pa.bool_()),
        ("rank_eps", pa.float64()),
        ("method", pa.string()),
        ("absolute_error", pa.float64()),
        ("complete", pa.bool_()),
        ("captured_energy_share", pa.float64()),
        ("residual_norm", pa.float64()),
    ]
)


def save_spectra(path: Path, spectra: Sequence[Spectrum], *, made_from: str | None = None) -> None:
    """Write spectra to a Parquet file atomically; float64 values keep every bit.

    `made_from` is the SHA-256 of the checkpoint that the spectra belong to, if it is known.
    """
    if not path.parent.is_dir():
        raise InputError(f"folder {path.parent} does not exist; create it to save spectra there")
    rows = [{f.name: getattr(spectrum, f.name) for f in fields(Spectrum)} for spectrum in spectra]
    facts = {"format": FORMAT, "versions": _versions(), "made_from": made_from}
    metadata = {METADATA_KEY: json.dumps(facts).encode()}
    table = pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata(metadata))
    with whole_file(path) as file:
        pq.write_table(table, file, write_page_checksum=True)


def load_spectra(path: Path) -> list[Spectrum]:
    """Read spectra that `save_spectra` wrote, in their order.

    Raises:
        InputError: The file does not exist, is damaged or has another format.
    """
    table = _read(path, pq.read_table, page_checksum_verification=True)
    spectra = []
    for record in table.to_pylist():
        record["shape"] = tuple(record["shape"])
        record["active_shape"] = tuple(record["active_shape"])
        record["singular_values"] = np.array(record["singular_values"], dtype=np.float64)
        spectra.append(Spectrum(**record))
    return spectra


def spectra_made_from(path: Path) -> str | None:
    """Return the SHA-256 of the checkpoint behind a file of spectra, if it was recorded."""
    made_from = _facts(_read(path, pq.read_schema)).get("made_from")
    return None if made_from is None else str(made_from)


def count_spectra(path: Path) -> int:
    """Return how many spectra a file holds."""
    _read(path, pq.read_schema)
    return int(pq.read_metadata(path).num_rows)


def _read(path: Path, read: Callable[..., Any], **options: Any) -> Any:
    if not path.is_file():
        raise InputError(f"{path} does not exist; give a file of spectra")
    try:
        found = read(path, **options)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path} is not a whole Parquet file; measure the spectra again"
        ) from error
    schema = found if isinstance(found, pa.Schema) else found.schema
    if (kind := _facts(schema).get("format")) != FORMAT:
        raise InputError(f"{path} holds format {kind!r}, not {FORMAT!r}; measure the spectra again")
    return found


def _facts(schema: pa.Schema) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((schema.metadata or {}).get(METADATA_KEY, b"{}"))
    return facts


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("lowrank_study", "numpy", "scipy", "pyarrow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
