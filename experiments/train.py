"""Train one run, or with `-m` or an experiment a whole sweep, into the run store.

python experiments/train.py method=lora method.rank=8
python experiments/train.py -m method=full,lora method.rank=1,2,4 seed=0,1,2 sweep=mine
python experiments/train.py experiment=rank_sweep
"""

from omegaconf import DictConfig

from lowrank_study.command import command
from lowrank_study.config import check_used, plain, read_config
from lowrank_study.study.sweep import sweep_of


def train(config: DictConfig) -> None:
    """Train the one run that is configured (sweeps go through the launcher)."""
    check_used(plain(config))
    asked = read_config(plain(config))
    [run] = sweep_of([asked])
    split = "test" if asked.spec.train.read_test else "validation"
    outcome = run.record.get("message") or f"{split} accuracy {run.record[split]['accuracy']:.3f}"
    print(f"{run.status}: {outcome}; everything is in {run.folder}")


main = command(train, is_swept=True)

if __name__ == "__main__":
    main()
