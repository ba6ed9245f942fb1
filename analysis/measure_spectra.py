"""Measure the update ΔW between two checkpoints, or of an adapter, and write a report.

python analysis/measure_spectra.py --before roberta-base --after runs/tuned
python analysis/measure_spectra.py adapter=my_adapter base=roberta-base compare_with_base=true
python analysis/measure_spectra.py before=base after=seed_0 other=seed_1 out=two_seeds
"""

from collections.abc import Mapping
from typing import Any

from lowrank_study.command import command
from lowrank_study.config.fields import Fields
from lowrank_study.errors import Unfinished
from lowrank_study.left_out import in_words


def measure(config: Mapping[str, Any]) -> None:
    """Measure, write the report, and print its path and main finding."""
    from lowrank_study.config.sources import require_sources

    require_sources(Fields("", config), ("before", "after", "adapter", "base", "other"))
    from lowrank_study.measurement.request import measure_request, read_request
    from lowrank_study.reporting import spectra_report

    request = read_request(config)
    with spectra_report.progress_shown() as on_progress:
        found = measure_request(
            request, on_progress=on_progress, on_left_out=spectra_report.tell_left_out
        )
    path, summary = spectra_report.report_measurement(found, request.out)
    print(f"{path}: {summary}")
    if found.left_out and not request.settings.allow_partial:
        raise Unfinished("; ".join(in_words(found.left_out)))


main = command(measure, config_name="measure_spectra")

if __name__ == "__main__":
    main()
