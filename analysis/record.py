"""Write a sweep's findings, tables and figures to results/records/, to be committed.

python analysis/record.py sweep=first_study
python analysis/record.py sweep=first_study record=2026-12-01_first_study
python analysis/record.py sweep=first_study margin=0.01 --results "other results"
"""

from collections.abc import Mapping
from typing import Any

from lowrank_study.command import command
from lowrank_study.config.fields import Fields


def record(config: Mapping[str, Any]) -> None:
    """Write the record and print its path."""
    from lowrank_study.sweeps.outcome import check_sweeps, require_sweeps

    require_sweeps(config)
    from lowrank_study.config.run import read_report_request
    from lowrank_study.reporting.record import record_sweep

    asked = read_report_request(config)
    name = Fields("", config).text("record") or asked.sweep
    print(record_sweep(asked.sweep, results=asked.results, name=name, margin=asked.margin))
    check_sweeps(config)


main = command(record, config_name="record")

if __name__ == "__main__":
    main()
