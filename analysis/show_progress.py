"""Show how many runs of a sweep are planned, running and ended, and why runs failed.

python analysis/show_progress.py sweep=first_study
python analysis/show_progress.py sweep=first_study_rates  # the trials that choose learning rates
python analysis/show_progress.py sweep=first_study --results "other results"
"""

from collections.abc import Mapping
from typing import Any

from lowrank_study.command import command
from lowrank_study.config.fields import Fields


def show(config: Mapping[str, Any]) -> None:
    """Print how far the sweep is; any number of workers may train it meanwhile."""
    from lowrank_study.sweeps.outcome import progress_in_words

    asked = Fields("", config)
    print(progress_in_words(asked.text("sweep"), asked.path_of("results")))


main = command(show, config_name="show_progress")

if __name__ == "__main__":
    main()
