"""The jobs of a sweep, composed as Hydra composes them, only sooner.

    [config.spec for config in planned_configs("experiment=rank_sweep")]

Reading the YAML files again takes Hydra a fifth of a second, and the jobs of a sweep mostly differ
in values: files are composed once for each choice of files, and the values are set in a copy, as
Hydra itself would set them. An experiment whose runs are no grid lists `cases`, each a grid of its
own: each job becomes the runs of all cases.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import OmegaConf

from lowrank_study.config import CONF_FOLDER, RunConfig, plain, read_config
from lowrank_study.errors import InputError


class JobComposer:
    """Composes jobs from Hydra's loader and the configuration of the whole sweep."""

    def __init__(self, loader: Any, config: Any) -> None:
        self._loader, self._config = loader, config
        self._composed: dict[tuple[str, ...], Any] = {}
        self._is_group: dict[str, bool] = {}

    def configs(self, overrides: Sequence[str]) -> list[RunConfig]:
        """Return one job's configurations: one, or those of all cases.

        Raises
        ------
        InputError
            A value that can't be, or one that the cases of the experiment set.
        """
        config = self._job(overrides)
        cases = plain(config).get("cases")
        if not cases:
            return [read_config(plain(config))]
        asked = {override.partition("=")[0] for override in overrides}
        if twice := sorted(asked & {key for case in cases for key in case}):
            raise InputError(
                f"{twice[0]}: the experiment's cases say it; leave it out, or give cases=null"
            )
        return [
            read_config(plain(self._job([*overrides, *values])))
            for case in cases
            for values in _grid(self._loader, case)
        ]

    def _job(self, overrides: Sequence[str]) -> Any:
        parsed = OverridesParser.create(self._loader).parse_overrides(list(overrides))
        values = [override for override in parsed if self._only_sets_a_value(override)]
        files = tuple(o.input_line or "" for o in parsed if o not in values)
        if files not in self._composed:
            whole = self._loader.load_sweep_config(self._config, list(files))
            ours = [key for key in whole if key != "hydra"]  # Hydra's own part is the largest
            self._composed[files] = OmegaConf.masked_copy(whole, ours)
            OmegaConf.set_struct(self._composed[files], True)  # a setting there is not is refused
        config = self._composed[files].copy()
        for override in values:
            OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
        return config

    def _only_sets_a_value(self, override: Override) -> bool:
        group = override.key_or_group.replace(".", "/")
        if group not in self._is_group:
            self._is_group[group] = bool(self._loader.get_group_options(group))
        is_change = not (override.is_add() or override.is_delete() or override.package)
        return is_change and not self._is_group[group]


def planned_configs(*overrides: str) -> list[RunConfig]:
    """Return the configurations of all runs that a command line would plan, equal ones too.

    Parameters
    ----------
    overrides
        As on the command line: `experiment=NAME`, or values; the experiment's grid is taken.
    """
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF_FOLDER), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration("config", list(overrides), run_mode=RunMode.MULTIRUN)
        composer = JobComposer(loader, config)
        return [
            config
            for job in _grid(
                loader, OmegaConf.to_container(config.hydra.sweeper).get("params") or {}
            )
            for config in composer.configs([*overrides, *job])
        ]


def _grid(loader: Any, values: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the overrides of every job of a grid, whose values may be sweeps such as `1,2,4`."""
    written = [
        f"{key}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for key, value in values.items()
    ]
    return product(
        *(
            [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()]
            if o.is_sweep_override()
            else [o.input_line or ""]
            for o in OverridesParser.create(loader).parse_overrides(written)
        )
    )
