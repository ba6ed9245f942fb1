"""Read `source` in a configuration: where a model or a data set comes from."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from lowrank_study import assets
from lowrank_study.config.fields import Fields
from lowrank_study.errors import InputError
from lowrank_study.spec import Asset, HubRepo, WheelMember

_FILE_SUFFIXES = (
    *(".csv", ".tsv", ".tab", ".jsonl", ".json", ".parquet", ".bz2", ".gz", ".xlsx", ".xls"),
    *(".gguf", ".safetensors", ".bin", ".pt", ".pth"),
)


def read_source(fields: Fields, *, subset: str | None, named: Sequence[str]) -> Asset:
    """Read `source`: a mapping (a pinned wheel), an existing path, or else a hub id."""
    source = fields.value("source")
    if isinstance(source, Mapping):
        pin = fields.part("source")
        return WheelMember(
            requirement=pin.text("requirement"),
            sha256=pin.text("sha256"),
            member=pin.text("member"),
        )
    text = fields.path_text("source")
    if is_path(text):
        return assets.local(text, named)
    return hub_repo(
        f"{fields.path}source", text, subset=subset, revision=fields.optional_text("revision")
    )


def is_path(text: str) -> bool:
    """Return whether a source's text is a path (one that exists or looks like one) or a hub id."""
    path = Path(os.path.expanduser(text))
    return text.startswith((".", "/", "~")) or path.exists() or path.suffix in _FILE_SUFFIXES


def require_sources(fields: Fields, names: Sequence[str]) -> None:
    """Refuse paths that do not exist; ignore hub ids and null."""
    for name in names:
        if fields.value(name) is not None and is_path(text := fields.path_text(name)):
            assets.existing(text)


def hub_repo(name: str, text: str, *, subset: str | None, revision: str | None) -> HubRepo:
    """Read a hub id; refuse a text that is neither a path nor a hub id."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text):
        raise InputError(
            f"{name}={text!r}: give an existing path, or a hub id such as 'roberta-base'"
        )
    return HubRepo(repo_id=text, subset=subset, revision=revision)
