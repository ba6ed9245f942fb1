"""Turn a command line into Hydra overrides; paths and texts need no Hydra quotes.

    >>> read_arguments(["-m", "--before", "runs/lr=1e-4,r=8", "method.rank=1,2"]).overrides
    ("before='runs/lr=1e-4,r=8'", 'method.rank=1,2')

Hydra's grammar requires quotation marks around `=`, `,`, brackets and non-ASCII letters. Settings
that hold a path or a text (`PATHS`, `TEXTS`) are quoted here, so users need not do it. They hold
one value and are never swept. `--KEY VALUE` and `--KEY=VALUE` take the value literally. `KEY=VALUE`
also accepts `null` and a value that is already quoted.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from lowrank_study.errors import InputError

PATHS = {
    *("results", "out", "before", "after", "adapter", "base", "other"),
    *("task.source", "model.source"),
}
TEXTS = {
    *("sweep", "question", "record", "task.name", "model.name", "task.subset", "task.revision"),
    *("model.revision", "task.label_column", "task.group_column", "task.encoding"),
    *("task.separator", "task.train", "task.validation", "task.test", "task.text_column"),
    *("task.prompt_column", "task.response_column", "task.messages_column"),
    "task.prompt_template",
}
_LISTS = {"sweep", "record"}
"""Texts for which one command also accepts a list, as in `[a,b]`."""
_PINS = {"task.source", "model.source"}
"""Paths that may also be given as a mapping, which pins a wheel."""
_QUOTED = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\"""", re.DOTALL)
_HELP, _GRID = ("-h", "--help"), ("-m", "--multirun")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """A parsed command line."""

    overrides: tuple[str, ...]
    """Overrides of the configuration, in Hydra's grammar."""
    is_grid: bool
    """Whether `-m` was given, so that several values of a setting form a sweep."""
    wants_help: bool
    """Whether `--help` was given."""
    wants_settings: bool
    """Whether `--cfg` was given, which prints the composed settings and runs nothing."""


def read_arguments(arguments: Sequence[str]) -> Arguments:
    """Read the arguments of a command."""
    overrides: list[str] = []
    typed: list[tuple[str, str]] = []
    flags: set[str] = set()
    left = iter(arguments)
    for argument in left:
        if argument in (*_HELP, *_GRID):
            flags.add("help" if argument in _HELP else "grid")
        elif argument == "--cfg":
            flags.add("settings")
            next(left, None)  # Hydra's `--cfg job`
        elif argument.startswith("--") and len(argument) > 2:
            key, equals, value = argument[2:].partition("=")
            text = value if equals else next(left, None)
            if text is None:
                raise InputError(f"--{key} needs a value, as in --{key} VALUE")
            typed.append((key, text))
            is_quoted = key in PATHS | TEXTS
            overrides.append(_quoted_setting(key, text) if is_quoted else f"{key}={text}")
        elif "=" in argument or argument.startswith("~"):
            key, _, text = argument.partition("=")
            typed.append((key, text))
            overrides.append(as_override(argument))
        else:
            raise InputError(
                f"{argument!r} is not a setting: write KEY=VALUE or --KEY VALUE, as in "
                "results=results (--help lists the settings)"
            )
    if "grid" in flags:
        _check_sources(typed)
    return Arguments(
        overrides=tuple(overrides),
        is_grid="grid" in flags,
        wants_help="help" in flags,
        wants_settings="settings" in flags,
    )


def as_override(argument: str) -> str:
    """Return `KEY=VALUE` in Hydra's grammar; quote a path or text unless it is already quoted."""
    key, equals, text = argument.partition("=")
    if not equals or key not in PATHS | TEXTS or text == "null":
        return argument
    if key in PATHS and text and os.path.lexists(os.path.expanduser(text)):
        return _quoted_setting(key, text)
    is_list = key in _LISTS and text.startswith("[")
    is_pin = key in _PINS and text.startswith("{")
    if is_list or is_pin or _QUOTED.fullmatch(text):
        return argument
    return _quoted_setting(key, text)


def _check_sources(typed: Sequence[tuple[str, str]]) -> None:
    """Refuse several sources in a grid, because all would have the same name."""
    for key, text in typed:
        first, comma, other = text.partition(",")
        if key in _PINS and comma and not os.path.lexists(os.path.expanduser(text)):
            name = key.replace("source", "name")
            raise InputError(
                f"{key}={text}: no such path. Several sources need a name each: 'cases="
                f"[{{{key}: {first}, {name}: first}}, {{{key}: {other}, {name}: second}}]'"
            )


def _quoted_setting(key: str, text: str) -> str:
    is_variable = key in PATHS and text.startswith("$")  # else the shell would have expanded it
    return f"{key}={quoted(f'./{text}' if is_variable else text)}"


def quoted(text: str) -> str:
    """Quote a text for Hydra's grammar, which then reads back exactly that text."""
    # OmegaConf reads `${` as a reference unless an odd number of backslashes is before it.
    escaped = re.sub(r"(\\*)\$\{", lambda found: found.group(1) * 2 + r"\${", text)
    # Hydra reads a backslash as an escape only before a quotation mark.
    inner = re.sub(r"(\\*)('|\Z)", lambda found: found.group(1) * 2 + found.group(2), escaped)
    return "'" + inner.replace("'", r"\'") + "'"
