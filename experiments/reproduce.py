"""Forecast how long experiments take, then train and report each of them.

python experiments/reproduce.py                      # the flagship study: `make reproduce`
python experiments/reproduce.py forecast=true        # only the forecast
python experiments/reproduce.py 'experiments=[]' 'papers=[lora_table6,lora_table7]'
"""

from collections.abc import Mapping
from typing import Any

from lowrank_study.command import command
from lowrank_study.config.fields import Fields


def reproduce(config: Mapping[str, Any]) -> None:
    """Forecast, then train and report each experiment."""
    from lowrank_study.papers.tables import load_paper
    from lowrank_study.reporting.reproduction import plan_of

    asked = Fields("", config)
    plan = plan_of(
        asked.names("experiments"),
        [load_paper(name) for name in asked.names("papers")],
        results=asked.path_of("results"),
        updates=asked.names("updates"),
        scale=asked.optional_text("scale"),
        allow_partial=asked.flag("allow_partial"),
    )
    print(plan.in_words(), flush=True)
    if not asked.flag("forecast"):
        for line in plan.carry_out(record=asked.text("record")):
            print(line, flush=True)


main = command(reproduce, config_name="reproduce")

if __name__ == "__main__":
    main()
