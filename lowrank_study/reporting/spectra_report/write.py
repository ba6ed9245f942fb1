"""Write a measurement to a folder: the page, and the same as CSV, Parquet, JSON and LaTeX.

    path, summary = report_measurement(found, Path("report"))

writes

    report.html              one self-contained page to explore
    spectra.csv, .parquet    a row per matrix; .json adds settings, hashes and similarities
    spectra.tex              the ranks as a LaTeX table (needs booktabs and longtable)
    singular_values.parquet  every singular value
    vectors.csv, skipped.csv, files.csv

All content is made before the first file is written. A new folder appears atomically. In an
existing one, each file is replaced atomically, the page last.
"""

import io
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from lowrank_study.config.run import composed
from lowrank_study.errors import InputError
from lowrank_study.files import require_folder
from lowrank_study.measurement.records import Measurement, OnProgress
from lowrank_study.measurement.request import measure_request, read_request
from lowrank_study.reporting.display import csv_text
from lowrank_study.reporting.spectra_report.findings import summary_of
from lowrank_study.reporting.spectra_report.formats import json_of, latex_of
from lowrank_study.reporting.spectra_report.page import page_of
from lowrank_study.reporting.spectra_report.progress import tell_left_out
from lowrank_study.reporting.spectra_report.tables import (
    files_table,
    in_words,
    matrices_table,
    sigma_table,
    skipped_table,
    vectors_table,
)

PAGE = "report.html"


def report_spectra(
    *, on_progress: OnProgress | None = None, **settings: Any
) -> tuple[Path, Measurement]:
    """Measure two checkpoints or an adapter and write the report, as the command does.

    Args:
        on_progress: Called after each matrix; None shows nothing.
        settings: Settings of `conf/measure_spectra.yaml`, such as before, after, adapter, base,
            other, out, compare_with_base. Omitted ones have the defaults of that file. Paths may be
            `Path` objects.

    Returns:
        The path of the page, and the measurement.

    Raises:
        InputError: A setting is invalid, or the files can't be measured; nothing is written.
    """
    defaults = composed("measure_spectra")
    unknown = [name for name in settings if name not in defaults]
    if unknown:
        raise InputError(f"{unknown[0]!r} is not a setting; the settings are {', '.join(defaults)}")
    given = {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}
    request = read_request(defaults | given)
    on_progress = on_progress or (lambda _: None)
    found = measure_request(request, on_progress=on_progress, on_left_out=tell_left_out)
    path, _ = report_measurement(found, request.out)
    return path, found


def report_measurement(found: Measurement, folder: Path) -> tuple[Path, str]:
    """Write the report of a measurement into a folder.

    Returns:
        The path of the page, and the main finding in one line.

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
        "spectra.json": json_of(found).encode(),
        "spectra.tex": latex_of(found).encode(),
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


def _write_all(files: Mapping[str, bytes], folder: Path) -> None:
    """Write a folder of files so that each file is complete at any time."""
    require_folder(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise InputError(
            f"out={folder} can't be written ({error.strerror}); give a writable folder"
        ) from None
    try:
        for name, content in files.items():
            with (made / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        os.chmod(made, 0o755)  # mkdtemp's folders are private
        if not folder.exists():
            os.rename(made, folder)
            return
        for name in files:  # the page is the last of them
            os.replace(made / name, folder / name)
    finally:
        shutil.rmtree(made, ignore_errors=True)
