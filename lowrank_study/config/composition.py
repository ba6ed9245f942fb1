"""Compose `conf/` with Hydra; every error message is our own.

    >>> composer_of("config").config(["method=lora", "method.rank=4"]).method.rank
    4

Hydra takes 0.2 s to read the files, and the runs of a sweep mostly differ in values. So each choice
of files is read once, and values are set here, in a copy. An unknown setting is always refused,
even with `+`, because a command that ignored a setting would answer another question.
"""

import json
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from lowrank_study.config.arguments import as_override, quoted
from lowrank_study.config.suggestions import nearest, unknown_setting
from lowrank_study.errors import InputError

CONF_FOLDER = Path(__file__).resolve().parents[2] / "conf"

_OPEN = ("method.options", "model.roles", "model.targets")
"""Mappings whose keys the user chooses."""
_KEY = re.compile(r"[~+]*[A-Za-z_][\w-]*(\.[\w-]+)*")
_COMPOSING = threading.Lock()
"""Hydra has one global state per process, so threads compose one after the other."""


class Composer:
    """Composes configurations that start from one file of `conf/`."""

    def __init__(self, name: str) -> None:
        if not CONF_FOLDER.is_dir():
            raise InputError(
                f"no configuration folder at {CONF_FOLDER}: run this in a clone of the project"
            )
        self._name = name
        self._files: dict[tuple[str, ...], _Files] = {}
        defaults = OmegaConf.load(CONF_FOLDER / f"{name}.yaml").get("defaults") or []
        self.groups: dict[str, Any] = {
            str(key): choice
            for entry in defaults
            if isinstance(entry, DictConfig)
            for key, choice in entry.items()
            if not str(key).startswith("override ")
        }
        """Settings that choose a file, as `method=lora` does, with their default choice."""
        self._optional = [group for group, choice in self.groups.items() if choice is None]

    def config(self, overrides: Sequence[str]) -> DictConfig:
        """Return the configuration that the overrides give."""
        parsed = self.parsed(overrides)
        files = [override for override in parsed if self._chooses_a_file(override)]
        config = self._composed(files).settings.copy()
        for override in parsed:
            if override.is_sweep_override():
                raise InputError(f"{override.input_line}: give one value")
            if override not in files:
                self._set(config, override.key_or_group, override.value())
        return config

    def grid(self, overrides: Sequence[str]) -> dict[str, Any]:
        """Return the grid of the chosen experiment: setting → values, as `1,2,4`."""
        files = [each for each in self.parsed(overrides) if self._chooses_a_file(each)]
        return self._composed(files).grid

    def parsed(self, overrides: Iterable[str]) -> list[Override]:
        """Parse overrides; paths and texts need no quotation marks."""
        return [self._parsed(as_override(override)) for override in overrides]

    def choices(self, group: str) -> list[str]:
        """Return the valid choices of a group of settings."""
        return sorted(file.stem for file in (CONF_FOLDER / group).glob("*.yaml"))

    def settings(self) -> list[str]:
        """Return all settings of the default choices."""
        return [*self.groups, *_keys(self._composed([]).settings)]

    def _parsed(self, text: str) -> Override:
        parser = OverridesParser.create(_loader())
        key, _, value = text.partition("=")
        if not _KEY.fullmatch(key):
            raise InputError(f"{text}: {key!r} is not a setting: write KEY=VALUE, as in seed=1")
        try:
            [override] = parser.parse_overrides([text])
        except HydraException as error:
            if set(value) & set("[]{}()'\"$"):
                raise InputError(
                    f"{text}: can't be parsed: close every bracket and quotation mark, and "
                    f"quote a text that contains them, as in {key}=\"'...'\""
                ) from error
            [override] = parser.parse_overrides([f"{key}={quoted(value)}"])
        if override.is_add() or override.is_force_add():
            bare = key.lstrip("+")
            if bare in self.settings():
                raise InputError(f"{text}: + can't add a setting: write {bare}={value}")
            raise InputError(unknown_setting(bare, value, self.settings()))
        return override

    def _chooses_a_file(self, override: Override) -> bool:
        group, choice = override.key_or_group, override.value()
        if override.is_delete():
            if group not in self._optional:
                raise InputError(
                    f"~{group}: this can't be left out; settings that can: "
                    f"{', '.join(self._optional) or 'none'}"
                )
            return True
        if group not in self.groups or isinstance(choice, Mapping) or override.is_sweep_override():
            return False
        if choice is None:
            remedy = f"write ~{group} to leave it out" if group in self._optional else "choose one"
            raise InputError(f"{group}=null: a group of settings can't be null; {remedy}")
        if choice not in (valid := self.choices(group)):
            close = [name for name in valid if str(choice) in name] or nearest(str(choice), valid)
            guess = f"did you mean {close[0]}? Valid are" if close else "valid are"
            raise InputError(f"{group}={choice} is unknown: {guess} {', '.join(valid)}")
        return True

    def _composed(self, files: Sequence[Override]) -> "_Files":
        lines = tuple(override.input_line or "" for override in files)
        if lines not in self._files:
            try:
                with _COMPOSING:
                    whole = _loader().load_configuration(
                        self._name, list(lines), run_mode=RunMode.RUN
                    )
            except (HydraException, OmegaConfBaseException) as error:
                reason = " ".join(str(error.__cause__ or error).split())
                raise InputError(
                    f"{' '.join(lines) or CONF_FOLDER}: Hydra can't combine the files of conf/: "
                    f"{reason}"
                ) from error
            settings = OmegaConf.masked_copy(whole, [key for key in whole if key != "hydra"])
            params = OmegaConf.to_container(whole.hydra.sweeper).get("params") or {}
            self._files[lines] = _Files(settings=settings, grid=params)
        return self._files[lines]

    def _set(self, config: DictConfig, key: str, value: Any) -> None:
        is_open = any(
            _has(config, name) and (key == name or key.startswith(f"{name}.")) for name in _OPEN
        )
        if not is_open and not _has(config, key):
            raise InputError(self._unknown(config, key, value))
        if isinstance(value, Mapping) and _is_mapping(config, key) and not is_open:
            for name, inner in value.items():  # each is checked on its own
                self._set(config, f"{key}.{name}", inner)
            return
        OmegaConf.update(config, key, value, merge=True, force_add=is_open)

    def _unknown(self, config: DictConfig, key: str, value: Any) -> str:
        group = key.partition(".")[0]
        shown = "" if isinstance(value, Mapping) else written(value)
        if group == "hydra":
            return f"{key} is one of Hydra's own settings, which no command uses: leave it out"
        if group in self.groups and group not in config:
            return f"{key} belongs to {group}, which is not chosen: add {group}=" + "|".join(
                self.choices(group)
            )
        of = f"method={config.method.name}" if group == "method" and "method" in config else ""
        return unknown_setting(key, shown, [*self.groups, *_keys(config)], of=of)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Files:
    """The settings and the grid of one choice of `conf/` files."""

    settings: DictConfig
    grid: dict[str, Any]
    """`hydra.sweeper.params`; the rest of Hydra's settings is large and unused."""


@cache
def composer_of(name: str) -> Composer:
    """Return the composer of a file of `conf/`, which reads each file once."""
    return Composer(name)


@cache
def _loader() -> Any:
    with initialize_config_dir(str(CONF_FOLDER), version_base="1.3"):
        return GlobalHydra.instance().config_loader()


def plain(config: Any) -> dict[str, Any]:
    """Turn a `DictConfig` into plain types; other modules see no `DictConfig`."""
    try:
        mapping = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = error.full_key
        raise InputError(f"{key} has no value: give one, as in {key}=VALUE") from error
    except OmegaConfBaseException as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"{error.full_key}: a reference by ${{...}} fails: {first}") from error
    assert isinstance(mapping, dict)
    return {str(key): value for key, value in mapping.items()}


def _keys(config: DictConfig, path: str = "") -> list[str]:
    """Return the full names of all settings below a mapping."""
    found = []
    for key in config:
        name = f"{path}{key}"
        if name in _OPEN:
            continue
        is_part = _is_mapping(config, str(key)) and name not in ("task.source", "model.source")
        found += _keys(config[key], f"{name}.") if is_part else [name]
    return found


def _node(config: DictConfig, key: str) -> Any:
    return OmegaConf.select(config, key, throw_on_missing=False, throw_on_resolution_failure=False)


def _is_mapping(config: DictConfig, key: str) -> bool:
    return isinstance(_node(config, key), DictConfig)


def _has(config: DictConfig, key: str) -> bool:
    """Return whether a setting exists, even without a value."""
    parent, _, last = key.rpartition(".")
    node = _node(config, parent) if parent else config
    if isinstance(node, ListConfig):
        return last.isdigit() and int(last) < len(node)
    return isinstance(node, DictConfig) and last in list(node.keys())


def written(value: Any) -> str:
    """Return a setting's value as YAML writes it."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
