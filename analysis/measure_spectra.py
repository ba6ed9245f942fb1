"""Measure the weight updates between two checkpoints, or of an adapter, and report on them.

python analysis/measure_spectra.py --before roberta-base --after runs/tuned
python analysis/measure_spectra.py adapter=my_adapter base=roberta-base compare_with_base=true
python analysis/measure_spectra.py before=base after=seed_0 other=seed_1 out=two_seeds
"""

from collections.abc import Mapping
from typing import Any

from lowrank_study.command import command
from lowrank_study.fields import Fields


def measure(config: Mapping[str, Any]) -> None:
    """Measure, write the report, and say where it is and what it found."""
    from lowrank_study.config import require_sources

    require_sources(Fields("", config), ("before", "after", "adapter", "base", "other"))
    from lowrank_study.reporting.spectra_report import progress_shown, report_measurement
    from lowrank_study.study.measurement.request import measure_request, read_request

    request = read_request(config)
    with progress_shown() as on_progress:
        found = measure_request(request, on_progress=on_progress)
    path, summary = report_measurement(found, request.out)
    print(f"{path}: {summary}")


main = command(measure, config_name="measure_spectra")

if __name__ == "__main__":
    main()
