"""Read `source` in a configuration: where a model or a data set comes from."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from lowrank_study import assets
from lowrank_study.config.fields import Fields
from lowrank_study.errors import InputError
from lowrank_study.spec import Asset, GsmSymbolic, HubRepo, WheelMember

_FILE_SUFFIXES = (
    *(".csv", ".tsv", ".tab", ".jsonl", ".json", ".parquet", ".bz2", ".gz", ".xlsx", ".xls"),
    *(".gguf", ".safetensors", ".bin", ".pt", ".pth"),
)


def read_source(fields: Fields, *, subset: str | None, named: Sequence[str]) -> Asset:
    """Read `source`: a mapping (a pinned wheel), an existing path, or else a hub id."""
    source = fields.value("source")
    if isinstance(source, Mapping):
        pin = fields.part("source")
        member = {key: pin.text(key) for key in ("requirement", "sha256", "member")}
        return _generated(fields, member) if "generator" in pin.settings else WheelMember(**member)
    text = fields.path_text("source")
    if is_path(text):
        return assets.local(text, named)
    return hub_repo(
        f"{fields.path}source", text, subset=subset, revision=fields.optional_text("revision")
    )


def _generated(fields: Fields, member: Mapping[str, str]) -> GsmSymbolic:
    """Read a source whose rows are generated from templates."""
    fields.part("source").one_of("generator", ["gsm_symbolic"])
    held_out = fields.integer("held_out_templates", at_least=0)
    if held_out > 99:
        raise InputError(f"task.held_out_templates={held_out}: a number from 0 to 99 is needed")
    return GsmSymbolic(
        **member,
        held_out_templates=held_out,
        variants=fields.integer("variants", at_least=1),
        validation_variants=fields.integer("validation_variants", at_least=1),
        test_variants=fields.integer("test_variants", at_least=1),
        seed=fields.integer("split_seed", at_least=0),
        version=GsmSymbolic.VERSION,
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
