"""Write the report of a sweep from its finished runs. This command trains nothing.

python analysis/report.py sweep=first_study
python analysis/report.py sweep=first_study margin=0.01
python analysis/report.py sweep=first_study --results "other results"
"""

from collections.abc import Mapping
from typing import Any

from lowrank_study.command import command


def report(config: Mapping[str, Any]) -> None:
    """Write the report and print its path and main finding."""
    from lowrank_study.sweeps.outcome import check_sweeps, require_sweeps

    require_sweeps(config)
    from lowrank_study.config.run import read_report_request
    from lowrank_study.reporting.sweep_report import report_sweep

    asked = read_report_request(config)
    path, found = report_sweep(asked.sweep, results=asked.results, margin=asked.margin)
    print(f"{path}: {found}")
    check_sweeps(config)


main = command(report, config_name="report")

if __name__ == "__main__":
    main()
