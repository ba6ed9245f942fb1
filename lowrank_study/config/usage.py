"""Write the page that `--help` shows: what a command does, its settings and its exit codes.

The text comes from the main's docstring and the comments in `conf/`.
"""

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lowrank_study.config.composition import CONF_FOLDER, Composer, composer_of, written

_WIDTH = 100
_CODES = "Exit codes: 0 all done; 1 failed runs or left-out input; 2 bad input; 130 interrupted."
_SETTING = re.compile(r"(\w+):(?:\s[^#]*)?(?:#\s*(.*))?")
_MORE = re.compile(r"\s+#\s*(.*)")


def usage(about: str, config_name: str, overrides: Sequence[str]) -> str:
    """Return the page of a command, or of a choice such as `method=lora` among the overrides."""
    composer = composer_of(config_name)
    choices = [each.partition("=")[::2] for each in overrides]
    for group, name in choices:
        if group in composer.groups:
            return _choice_page(composer, group, name, overrides)
    config = OmegaConf.to_container(composer.config([]), resolve=False)
    assert isinstance(config, dict)
    meanings = meanings_in(CONF_FOLDER / f"{config_name}.yaml")
    rows = [
        (f"{key}={_shown(config[key])}", meanings.get(key, ""))
        for key in meanings
        if key in config and key not in composer.groups
    ]
    lines = [about.strip(), ""]
    if composer.groups:
        found = [
            (f"{group}={_shown(choice)}", _listed(composer.choices(group)))
            for group, choice in composer.groups.items()
        ]
        lines += ["Choices (`--help method=lora` shows the settings of one):", *_table(found), ""]
    lines += [
        "Settings, as KEY=VALUE or --KEY VALUE (type paths as for any other program):",
        *_table(rows),
        "",
    ]
    return "\n".join([*lines, _CODES])


def _choice_page(composer: Composer, group: str, name: str, overrides: Sequence[str]) -> str:
    config = composer.config(overrides)
    file = CONF_FOLDER / group / f"{name}.yaml"
    head = [line[1:].strip() for line in file.read_text().splitlines() if line.startswith("#")]
    head = [line for line in head if not line.startswith("@package")]
    meanings = meanings_in_group(file)
    part = config.get(group)
    values = OmegaConf.to_container(part, resolve=False) if isinstance(part, DictConfig) else {}
    assert isinstance(values, dict)
    rows = [(f"{group}.{key}={_shown(v)}", meanings.get(str(key), "")) for key, v in values.items()]
    return "\n".join([*head, "", *_table(rows)])


def meanings_in(file: Path) -> dict[str, str]:
    """Return the comment on each setting in a file and in the files that it builds on."""
    found: dict[str, str] = {}
    for entry in OmegaConf.load(file).get("defaults") or []:
        if isinstance(entry, str) and entry != "_self_":
            found |= meanings_in(file.with_name(f"{entry}.yaml"))
    last = ""
    for line in file.read_text().splitlines():
        if setting := _SETTING.fullmatch(line):
            last = setting.group(1)
            if last not in ("defaults", "hydra"):
                found[last] = setting.group(2) or found.get(last, "")
        elif last and (more := _MORE.fullmatch(line)):
            found[last] = f"{found.get(last, '')} {more.group(1)}".strip()
    return found


def meanings_in_group(file: Path) -> dict[str, str]:
    """Return the comment on each setting of a choice, from another choice where it has none."""
    others = (meanings_in(each) for each in sorted(file.parent.glob("*.yaml"), reverse=True))
    found = {key: text for other in others for key, text in other.items() if text}
    return found | {key: text for key, text in meanings_in(file).items() if text}


def _listed(names: Sequence[str]) -> str:
    """Join names with |; show names that begin alike once."""
    heads = [re.sub(r"^(glue|paper|flagship)_.*", r"\1_…", name) for name in names]
    return " | ".join(dict.fromkeys(heads))


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{…}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        listed = f"[{','.join(map(str, value))}]"
        return listed if len(listed) < 20 else "[…]"
    return written(value)


def _table(rows: Sequence[tuple[str, str]]) -> list[str]:
    indent = min(max((len(setting) for setting, _ in rows), default=0) + 4, 34)
    lines = []
    for setting, meaning in rows:
        start = f"  {setting}".ljust(indent - 1) + " "
        lines += textwrap.wrap(
            start + meaning, _WIDTH, subsequent_indent=" " * indent, drop_whitespace=True
        )
    return lines
