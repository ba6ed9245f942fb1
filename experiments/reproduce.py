"""Run experiments one after the other, and say beforehand how long it will take.

python experiments/reproduce.py                      # the flagship study: `make reproduce`
python experiments/reproduce.py forecast=true        # only how long
python experiments/reproduce.py experiments=[paper_lora_table6]
"""

from pathlib import Path

from omegaconf import DictConfig

from lowrank_study.command import command
from lowrank_study.config import plain
from lowrank_study.jobs import planned_configs
from lowrank_study.reporting.record import record_sweep
from lowrank_study.reporting.sweep_report import report_sweep
from lowrank_study.study.forecast import forecasts, in_words
from lowrank_study.study.sweep import sweep_of


def reproduce(config: DictConfig) -> None:
    """Forecast, train, report and record each experiment."""
    asked = plain(config)
    results = Path(asked["results"])
    planned = {
        name: planned_configs(f"experiment={name}", f"results={results}")
        for name in asked["experiments"]
    }
    seconds = forecasts(planned)
    for name, duration in seconds.items():
        print(f"{name}: {in_words(duration)}")
    print(f"in all: {in_words(sum(seconds.values()))}; what has ended is not trained again")
    for name, configs in {} if asked["forecast"] else planned.items():
        sweep_of(configs)
        path, found = report_sweep(name, results=results, folder=results / "report" / name)
        print(f"{path}: {found}")
        if asked["record"]:
            record_sweep(name, results=results, name=f"{asked['record']}_{name}")


main = command(reproduce, config_name="reproduce")

if __name__ == "__main__":
    main()
