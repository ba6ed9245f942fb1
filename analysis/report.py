"""Write the report of a sweep from what the run store holds of it.

python analysis/report.py sweep=rank_sweep
"""

from omegaconf import DictConfig

from lowrank_study.command import command
from lowrank_study.config import plain, read_config
from lowrank_study.reporting.sweep_report import report_sweep


@command
def main(config: DictConfig) -> None:
    """Write the report and say where it is and what it found."""
    asked = read_config(plain(config))
    path, found = report_sweep(asked.sweep, results=asked.results, margin=asked.margin)
    print(f"{path}: {found}")


if __name__ == "__main__":
    main()
