"""From a measurement to a folder: the page, and the same as CSV, Parquet, JSON and LaTeX.

    path, summary = report_measurement(found, Path("report"))

writes

    report.html              everything in one file to explore, no other file needed
    spectra.csv, .parquet    a row a matrix; .json the same with settings, hashes and similarities
    spectra.tex              the ranks as a LaTeX table (needs booktabs and longtable)
    singular_values.parquet  every singular value
    vectors.csv, skipped.csv, files.csv

All files are made before the first is written. A new folder appears whole or not at all; in
one that is there, each file is replaced at once by a whole one, the page last.
"""

import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from lowrank_study.config.run import composed
from lowrank_study.errors import InputError
from lowrank_study.files import require_folder
from lowrank_study.measurement.records import MeasuredMatrix, Measurement, OnProgress, Step
from lowrank_study.measurement.request import (
    measure_request,
    read_request,
)
from lowrank_study.measurement.subjects import CheckpointPair, Subject
from lowrank_study.provenance import provenance
from lowrank_study.reporting.display import Column, Table, csv_text, printable
from lowrank_study.reporting.latex_report import escaped, latex_table
from lowrank_study.reporting.spectra_report.findings import (
    findings_of,
    left_out_of,
    summary_of,
)
from lowrank_study.reporting.spectra_report.page import page_of
from lowrank_study.reporting.spectra_report.progress import tell_left_out
from lowrank_study.reporting.spectra_report.tables import (
    NOT_MEASURED,
    files_table,
    in_words,
    matrices_of,
    matrices_table,
    measures_in,
    name_of,
    reading_text,
    sigma_table,
    skipped_table,
    vectors_table,
)
from lowrank_study.spectra.noise import noise_energy_rank

PAGE = "report.html"
FORMAT = "lowrank_study.measurement/1"


def report_spectra(
    *, on_progress: OnProgress | None = None, **settings: Any
) -> tuple[Path, Measurement]:
    """Measure two checkpoints or an adapter and write the report, as the command does.

    Args:
        on_progress: Called after each matrix; nothing is shown without it.
        settings: Those of `conf/measure_spectra.yaml`, such as before, after, adapter, base,
            other, out, compare_with_base; what isn't given is as that file says. Paths may be
            `Path`s.

    Returns:
        The path of the page, and the measurement itself.

    Raises:
        InputError: A setting that can't be, or files that can't be measured; nothing is written.
    """
    defaults = composed("measure_spectra")
    unknown = [name for name in settings if name not in defaults]
    if unknown:
        raise InputError(f"no setting {unknown[0]!r}: the settings are {', '.join(defaults)}")
    given = {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}
    request = read_request(defaults | given)
    found = measure_request(request, on_progress=on_progress or _silent, on_left_out=tell_left_out)
    path, _ = report_measurement(found, request.out)
    return path, found


def _silent(step: Step) -> None:
    """Show nothing."""


def report_measurement(found: Measurement, folder: Path) -> tuple[Path, str]:
    """Write the report of a measurement into a folder.

    Args:
        found: As `measure_spectra` gives it.
        folder: Where to; made if it isn't there.

    Returns:
        The path of the page, and what was found in one line.

    Raises:
        InputError: The folder is a file, or can't be written.
    """
    _write_all(_files(found), folder)
    return folder / PAGE, summary_of(found)


def _files(found: Measurement) -> dict[str, bytes]:
    frame = matrices_table(found)
    return {
        "spectra.csv": csv_text(in_words(frame)).encode(),
        "spectra.parquet": _parquet(frame),
        "spectra.json": _json(found),
        "spectra.tex": _latex(found).encode(),
        "singular_values.parquet": _parquet(sigma_table(found)),
        "vectors.csv": csv_text(vectors_table(found)).encode(),
        "skipped.csv": csv_text(skipped_table(found)).encode(),
        "files.csv": csv_text(files_table(found)).encode(),
        PAGE: page_of(found).encode(),
    }


def _parquet(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()


def _json(found: Measurement) -> bytes:
    content = {
        "format": FORMAT,
        "assumed": [printable(text) for text in found.assumed],
        "left_out": [
            asdict(part) | {"share": part.share, "sentence": printable(part.sentence)}
            for part in found.left_out
        ],
        "subject": subject_names(found.subject),
        "other_subject": None
        if found.other_subject is None
        else subject_names(found.other_subject),
        "settings": asdict(found.settings),
        "provenance": provenance(),
        "findings": [{"topic": topic, "text": text} for topic, text in findings_of(found)],
        "flags": [printable(flag) for flag in found.flags],
        "files": files_table(found).to_dict("records"),
        "measures": {m.name: m.meaning for m in measures_in(found)},
        "matrices": [_record(update, matrix) for update, matrix in matrices_of(found)],
        "vectors": vectors_table(found).to_dict("records"),
        "skipped": skipped_table(found).to_dict("records"),
    }
    return (json.dumps(_plain(content), indent=1, allow_nan=False) + "\n").encode()


def subject_names(subject: Subject) -> dict[str, str | None]:
    """Give the names of what was measured, without the folders they are in."""
    if isinstance(subject, CheckpointPair):
        paths: dict[str, Path | None] = {"before": subject.before, "after": subject.after}
    else:
        paths = {"adapter": subject.adapter, "base": subject.base}
    return {key: None if path is None else name_of(path) for key, path in paths.items()}


def _record(update: str, matrix: MeasuredMatrix) -> dict[str, Any]:
    spectrum, alike = matrix.spectrum, matrix.similarity
    return {
        "update": update,
        "module": printable(spectrum.module),
        "layer": spectrum.layer,
        "role": printable(spectrum.role),
        "shape": list(spectrum.shape),
        "active_shape": list(spectrum.active_shape),
        "storage_dtype": spectrum.storage_dtype,
        "state": matrix.state,
        "decomposition": spectrum.method,
        "complete": spectrum.complete,
        "absolute_error": spectrum.absolute_error,
        "base_frobenius_norm": spectrum.base_frobenius_norm,
        "rounding_frobenius_norm": spectrum.rounding_frobenius_norm,
        "noise_energy_rank_90": noise_energy_rank(*spectrum.shape),
        "measures": {name: asdict(reading) for name, reading in matrix.readings.items()},
        "intruder_cosines": list(matrix.intruder_cosines),
        "similarity": None
        if alike is None
        else {
            "right": alike.right_grid.tolist(),
            "right_dimension": alike.right_dimension,
            "left": alike.left_grid.tolist(),
            "left_dimension": alike.left_dimension,
            "angles_in_degrees": alike.angles.tolist(),
        },
    }


def _plain(value: Any) -> Any:
    """JSON has no NaN: what isn't a number becomes null."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _latex(found: Measurement) -> str:
    """Write the table, after the sentences on what was left out."""
    told = "".join(rf"\noindent {escaped(each)}\par" + "\n" for each in left_out_of(found))
    return told + latex_table(_latex_table(found))


def _latex_table(found: Measurement) -> Table:
    measures = [measure for measure in measures_in(found) if "latex" in measure.shown]
    rows = []
    for update, matrix in matrices_of(found):
        spectrum = matrix.spectrum
        row = {"update": update, "module": spectrum.module, "storage_dtype": spectrum.storage_dtype}
        row["shape"] = f"{spectrum.shape[0]}×{spectrum.shape[1]}"
        for measure in measures:
            reading = matrix.readings.get(measure.name, NOT_MEASURED)
            row[measure.name] = reading_text(reading, measure)
        rows.append(row)
    labels = {"module": "matrix", "shape": "shape", "storage_dtype": "stored as"}
    if found.other_matrices:
        labels = {"update": "update"} | labels
    labels |= {measure.name: measure.label for measure in measures}
    return Table(
        name="spectra",
        title="Updates, matrix by matrix",
        note="A rank of which rounding in storage decides is not resolvable.",
        frame=pd.DataFrame(rows),
        columns=tuple(Column(name, label, "text", label) for name, label in labels.items()),
    )


# ---------------------------------------------------------------- writing


def _write_all(files: Mapping[str, bytes], folder: Path) -> None:
    """Write a folder of files so that no name ever stands for a part of one."""
    require_folder(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise InputError(
            f"out={folder}: can't be written ({error.strerror}); give a folder that can"
        ) from None
    try:
        for name, content in files.items():
            with (made / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        os.chmod(made, 0o755)  # mkdtemp makes folders that only their owner may enter
        if not folder.exists():
            os.rename(made, folder)
            return
        for name in files:  # the page is the last of them
            os.replace(made / name, folder / name)
    finally:
        shutil.rmtree(made, ignore_errors=True)
