"""Measure what fine-tuning forgot: the loss of a sweep's models on texts outside their task.

python analysis/measure_forgetting.py sweep=lm_rank_sweep
python analysis/measure_forgetting.py sweep=lm_rank_sweep workers=1 launcher=inline
python analysis/measure_forgetting.py sweep=mine task=texts task.source=articles.jsonl
"""

from collections.abc import Mapping
from typing import Any

from lowrank_study.command import command


def forgetting(config: Mapping[str, Any]) -> None:
    """Measure the models that have not been measured, and print where the losses are."""
    from lowrank_study.sweeps.outcome import check_sweeps, report_command, require_sweeps

    require_sweeps(config)
    from lowrank_study.answers.forgetting import measure_forgetting, read_request
    from lowrank_study.results import forgetting_file

    request = read_request(config)
    runs = measure_forgetting(request)
    folder = forgetting_file(request.results, "").parent
    command = report_command(request.sweep, request.results)
    print(f"{folder}: {len(runs)} runs; {command} draws them")
    check_sweeps(config)


main = command(forgetting, config_name="measure_forgetting")

if __name__ == "__main__":
    main()
