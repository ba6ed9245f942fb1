"""Run experiments one after the other, and say beforehand how long it will take.

python experiments/reproduce.py                      # the flagship study: `make reproduce`
python experiments/reproduce.py forecast=true        # only how long
python experiments/reproduce.py experiments=[] papers=[lora_table6,lora_table7]
"""

from pathlib import Path

from omegaconf import DictConfig

from lowrank_study.command import command
from lowrank_study.config import plain
from lowrank_study.fields import Fields
from lowrank_study.reporting.reproduction import plan_of
from lowrank_study.study.papers import load_paper


def reproduce(config: DictConfig) -> None:
    """Forecast, then train and report each experiment."""
    asked = Fields("", plain(config))
    plan = plan_of(
        asked.names("experiments"),
        [load_paper(name) for name in asked.names("papers")],
        results=Path(asked.text("results")).expanduser(),
        updates=asked.names("updates"),
        scale=asked.optional_text("scale"),
    )
    print(plan.in_words(), flush=True)
    if not asked.flag("forecast"):
        for line in plan.carry_out(record=asked.text("record")):
            print(line, flush=True)


main = command(reproduce, config_name="reproduce")

if __name__ == "__main__":
    main()
