"""Truncate the updates of full fine-tuning to rank k, and evaluate the truncated models.

python experiments/truncate.py sweep=first_study
python experiments/truncate.py sweep=first_study 'scopes=[all]' 'ranks=[0,4,16]'
python experiments/truncate.py sweep=first_study seeds_of_parts=null workers=1
"""

from collections.abc import Mapping
from typing import Any

from lowrank_study.command import command
from lowrank_study.methods.full import FullFineTuning


def truncate(config: Mapping[str, Any]) -> None:
    """Make the missing evaluations, and print where they are."""
    from lowrank_study.sweeps.outcome import check_sweeps, report_command, require_sweeps

    require_sweeps(config)
    from lowrank_study.answers.truncated_runs import read_request, truncate_sweep
    from lowrank_study.results import truncation_file

    request = read_request(config)
    runs = truncate_sweep(request)
    folder = truncation_file(request.results, "").parent
    command = report_command(request.sweep, request.results)
    print(f"{folder}: {len(runs)} runs; {command} draws them")
    check_sweeps(config, method=FullFineTuning)


main = command(truncate, config_name="truncate")

if __name__ == "__main__":
    main()
