"""Train one run, or a sweep with `-m` or `experiment=NAME`. Finished runs are not trained again.

python experiments/train.py method=lora method.rank=8
python experiments/train.py -m method=full,lora method.rank=1,2,4 seed=0,1,2 sweep=mine
python experiments/train.py experiment=rank_sweep
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lowrank_study.command import sweep_command
from lowrank_study.files import require_folder
from lowrank_study.sweeps.launch import local

if TYPE_CHECKING:
    from lowrank_study.config.run import RunConfig


def train(configs: "Sequence[RunConfig]") -> None:
    """Train the requested runs, and print how they ended."""
    from lowrank_study.sweeps.outcome import check_complete, in_words
    from lowrank_study.sweeps.settings import difference

    name, results = configs[0].sweep, configs[0].results
    require_folder(results)
    if differing := difference(config.spec for config in configs):
        print(f"sweep={name} will have no report: {differing}", file=sys.stderr)
    from lowrank_study.answers.stopping import rule_of
    from lowrank_study.sweeps.sweep import sweep_of

    runs = sweep_of(configs, rule=rule_of(configs))
    print(in_words(runs, sweep=name, results=results), flush=True)
    check_complete(runs, configs[0])


main = sweep_command(train, prepare=local.prepare)

if __name__ == "__main__":
    main()
