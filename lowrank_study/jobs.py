"""The jobs of a sweep, composed as Hydra composes them, only sooner.

    [config.spec for config in planned_configs("experiment=rank_sweep")]

Reading the YAML files again takes Hydra a fifth of a second, and the jobs of a sweep mostly differ
in values: files are composed once for each choice of files, and the values are set in a copy, as
Hydra itself would set them. An experiment whose runs are no grid lists `cases`: each job becomes
one run a case, with the case's values set in it.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import OmegaConf

from lowrank_study.config import CONF_FOLDER, RunConfig, plain, read_config


class JobComposer:
    """Composes jobs from Hydra's loader and the configuration of the whole sweep."""

    def __init__(self, loader: Any, config: Any) -> None:
        self._loader, self._config = loader, config
        self._composed: dict[tuple[str, ...], Any] = {}
        self._is_group: dict[str, bool] = {}

    def configs(self, overrides: Sequence[str]) -> list[RunConfig]:
        """Return one job's configurations: one, or one a case.

        Raises
        ------
        InputError
            A value that can't be.
        """
        config = self._job(overrides)
        cases = config.get("cases")
        if not cases:
            return [read_config(plain(config))]
        found = []
        for case in cases:
            one = config.copy()
            for key, value in case.items():
                OmegaConf.update(one, key, value, merge=True)
            found.append(read_config(plain(one)))
        return found

    def _job(self, overrides: Sequence[str]) -> Any:
        parsed = OverridesParser.create(self._loader).parse_overrides(list(overrides))
        values = [override for override in parsed if self._only_sets_a_value(override)]
        files = tuple(o.input_line or "" for o in parsed if o not in values)
        if files not in self._composed:
            whole = self._loader.load_sweep_config(self._config, list(files))
            ours = [key for key in whole if key != "hydra"]  # Hydra's own part is the largest
            self._composed[files] = OmegaConf.masked_copy(whole, ours)
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
        grid = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
        choices = [
            [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()]
            if o.is_sweep_override()
            else [o.input_line or ""]
            for o in OverridesParser.create(loader).parse_overrides(grid)
        ]
        composer = JobComposer(loader, config)
        return [
            config for job in product(*choices) for config in composer.configs([*overrides, *job])
        ]
