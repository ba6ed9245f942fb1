"""Apply the rank measures to controls: noise, weight decay, shuffled labels and other seeds.

python analysis/measure_controls.py sweep=first_study
python analysis/measure_controls.py sweep=first_study along_training=false
python analysis/measure_controls.py sweep=first_study shuffled_seeds=0 directions=16
"""

from collections.abc import Mapping
from typing import Any

from lowrank_study.command import command
from lowrank_study.methods.full import FullFineTuning


def controls(config: Mapping[str, Any]) -> None:
    """Measure the controls, and print their path."""
    from lowrank_study.sweeps.outcome import check_sweeps, require_sweeps

    require_sweeps(config)
    from lowrank_study.answers.measured_controls import (
        measure_controls,
        read_request,
        shuffled_sweep,
    )
    from lowrank_study.results import controls_file

    request = read_request(config)
    table = measure_controls(request)
    path = controls_file(request.results, request.sweep)
    print(f"{path}: {', '.join(table['control'].unique())}")
    check_sweeps(config, names=[shuffled_sweep(request.sweep)], method=FullFineTuning)


main = command(controls, config_name="measure_controls")

if __name__ == "__main__":
    main()
