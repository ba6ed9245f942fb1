"""Keep the findings, tables and figures of a sweep under results/records/, to be committed.

python analysis/record.py sweep=rank_sweep +record=2026-11-22_rank_sweep
"""

from omegaconf import DictConfig

from lowrank_study.command import command
from lowrank_study.config import plain, read_config
from lowrank_study.reporting.record import record_sweep


@command
def main(config: DictConfig) -> None:
    """Write the record and say where it is."""
    settings = plain(config)
    name = str(settings.get("record") or settings["sweep"])
    asked = read_config(settings)
    margin = asked.margin
    print(record_sweep(asked.sweep, results=asked.results, name=name, margin=margin))


if __name__ == "__main__":
    main()
