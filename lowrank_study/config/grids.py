"""Turn a command line into the runs of a sweep.

    [config.spec for config in planned_configs("experiment=rank_sweep")]
    [config.spec for config in planned_configs("method.rank=1,2,4", "seed=0,1", is_grid=True)]

An experiment keeps its grid in `hydra.sweeper.params`, as in Hydra. An experiment that is not one
grid lists `cases`, each of which is a grid.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import product
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from lowrank_study.config.composition import Composer, composer_of, plain
from lowrank_study.config.run import RunConfig, check_used, read_config
from lowrank_study.errors import InputError
from lowrank_study.spec import LocalPath


def planned_configs(*overrides: str, is_grid: bool = False) -> list[RunConfig]:
    """Return the configurations of all runs that a command line plans, including equal ones.

    Args:
        overrides: Overrides as on the command line, such as `experiment=NAME`, which has a grid.
        is_grid: Whether several values of a setting (`1,2`) form a grid; in an experiment they
            always do.

    Raises:
        InputError: A value is invalid, or runs differ in a setting of the whole sweep.
    """
    composer = composer_of("config")
    parsed = composer.parsed(overrides)
    several = [override for override in parsed if override.is_sweep_override()]
    fixed = [override.input_line or "" for override in parsed if override not in several]
    params = composer.grid(fixed)
    if several and not (is_grid or params):
        first = several[0]
        raise InputError(
            f"{first.input_line}: several values are a sweep: add -m, as in `train.py -m "
            f"{first.input_line}` (a list is written {first.get_key_element()}=[...])"
        )
    asked = {override.get_key_element() for override in parsed}
    grid = {key: value for key, value in params.items() if key not in asked}
    configs = [
        config
        for jobs in product(_grid(composer, grid), _jobs(several))
        for config in configs_of_job(composer, [*fixed, *jobs[0], *jobs[1]])
    ]
    if not any(config.spec.method.is_adapter for config in configs):
        first_job = composer.config([*fixed, *next(_jobs(several))])
        check_used({"method": plain(first_job.method)})  # other parts may need values from cases
    _check_one_sweep(configs)
    return configs


def configs_of_job(composer: Composer, overrides: Sequence[str]) -> list[RunConfig]:
    """Return the configurations of one point of a grid: one, or those of all cases."""
    config = composer.config(overrides)
    cases = config.cases  # before other parts, which may need values from the cases
    if OmegaConf.is_config(cases):
        cases = OmegaConf.to_container(cases, resolve=True)
    if cases is None or cases == []:
        return [read_config(plain(config))]
    if not isinstance(cases, list) or not all(isinstance(case, Mapping) for case in cases):
        raise InputError(
            f"cases={cases!r}: a list of settings is needed, as in "
            "'cases=[{method.target: query, method.rank: 8}, {method.target: mlp}]'"
        )
    asked = {override.partition("=")[0] for override in overrides}
    if twice := sorted(asked & {key for case in cases for key in case}):
        raise InputError(
            f"{twice[0]}: the experiment's cases set it; leave it out, or give cases=null"
        )
    return [
        read_config(plain(composer.config([*overrides, *values])))
        for case in cases
        for values in _grid(composer, case)
    ]


def _grid(composer: Composer, values: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the overrides of every job of a grid, whose values may be sweeps such as `1,2,4`."""
    written = [
        f"{key}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for key, value in values.items()
    ]
    return _jobs(composer.parsed(written))


def _jobs(overrides: Sequence[Override]) -> Iterator[tuple[str, ...]]:
    return product(
        *(_values(o) if o.is_sweep_override() else [o.input_line or ""] for o in overrides)
    )


def _values(override: Override) -> list[str]:
    key = override.get_key_element()
    try:
        values = [f"{key}={value}" for value in override.sweep_string_iterator()]
    except (HydraException, RuntimeError):  # interval(…), glob(…)
        values = []
    if not values:
        raise InputError(
            f"{override.input_line}: a grid needs values one by one, as in {key}=1,2,4 or "
            f"'{key}=range(1,4)'"
        )
    return values


def _check_one_sweep(configs: Sequence[RunConfig]) -> None:
    """Refuse runs that differ in a setting of the sweep, or whose names hide a difference."""
    for field in fields(RunConfig):
        if field.name == "spec":
            continue
        values = dict.fromkeys(getattr(config, field.name) for config in configs)
        if len(values) > 1:
            listed = ",".join(map(str, values))
            raise InputError(
                f"{field.name}={listed}: a sweep has one value; run the command once for each"
            )
    for part in ("task", "model"):
        sources: dict[str, Any] = {}
        for config in configs:
            asset = getattr(config.spec, part)
            first = sources.setdefault(asset.name, asset.source)
            if asset.source != first:
                one, other = (_shown(source) for source in (first, asset.source))
                raise InputError(
                    f"{part}.source: {one} and {other} are both called {part}.name={asset.name}; "
                    f"give each a name: 'cases=[{{{part}.source: {one}, {part}.name: first}}, "
                    f"{{{part}.source: {other}, {part}.name: second}}]'"
                )


def _shown(source: Any) -> str:
    return source.path if isinstance(source, LocalPath) else str(getattr(source, "repo_id", source))
