"""Measure what rank measures read where there is nothing to find: noise, decay, shuffled labels.

python analysis/measure_controls.py sweep=rank_sweep
python analysis/measure_controls.py sweep=rank_sweep along_training=false
"""

from omegaconf import DictConfig

from lowrank_study.command import command
from lowrank_study.config import plain


def controls(config: DictConfig) -> None:
    """Measure the controls, and say where they are."""
    # Not before `command` has told the libraries to keep their progress bars out of a log.
    from lowrank_study.study.measured_controls import controls_file, measure_controls, read_request

    request = read_request(plain(config))
    table = measure_controls(request)
    path = controls_file(request.sweep, request.results)
    print(f"{path}: {', '.join(table['control'].unique())}")


main = command(controls, config_name="measure_controls")

if __name__ == "__main__":
    main()
