"""Measure the weight updates between two checkpoints, or of an adapter, and report on them.

python analysis/measure_spectra.py before=roberta-base after=runs/tuned
python analysis/measure_spectra.py adapter=my_adapter base=roberta-base compare_with_base=true
python analysis/measure_spectra.py before=base after=seed_0 other=seed_1 out=two_seeds
"""

from omegaconf import DictConfig

from lowrank_study.command import command
from lowrank_study.config import plain
from lowrank_study.errors import Unfinished
from lowrank_study.left_out import in_words
from lowrank_study.reporting.spectra_report import (
    progress_shown,
    report_measurement,
    tell_left_out,
)
from lowrank_study.study.measurement.request import measure_request, read_request


def measure(config: DictConfig) -> None:
    """Measure, write the report, and say where it is and what it found."""
    request = read_request(plain(config))
    with progress_shown() as on_progress:
        found = measure_request(request, on_progress=on_progress, on_left_out=tell_left_out)
    path, summary = report_measurement(found, request.out)
    print(f"{path}: {summary}")
    if found.left_out and not request.settings.allow_partial:
        raise Unfinished("; ".join(in_words(found.left_out)))


main = command(measure, config_name="measure_spectra")

if __name__ == "__main__":
    main()
