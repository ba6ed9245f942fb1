"""Truncate the updates of a sweep's full fine-tuning to rank k, and read the test split again.

python experiments/truncate.py sweep=rank_sweep
python experiments/truncate.py sweep=rank_sweep scopes=[all] ranks=[0,4,16]
"""

from omegaconf import DictConfig

from lowrank_study.command import command
from lowrank_study.config import plain


def truncate(config: DictConfig) -> None:
    """Evaluate what is not there yet, and say where it is."""
    # Not before `command` has told the libraries to keep their progress bars out of a log.
    from lowrank_study.study.truncated_runs import read_request, truncate_sweep

    request = read_request(plain(config))
    runs = truncate_sweep(request)
    folder = request.results / "truncation"
    print(f"{folder}: {len(runs)} runs; python analysis/report.py sweep={request.sweep} draws them")


main = command(truncate, config_name="truncate")

if __name__ == "__main__":
    main()
