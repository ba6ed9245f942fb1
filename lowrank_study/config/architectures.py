"""Published architectures: their sizes, and the roles of their linear maps, without weights.

A file of `conf/claim/architecture/` holds the published sizes, as in transformers' configuration,
and names a model of the suite whose roles it has.

    >>> config, base = published("llama_65b")
    >>> config["hidden_size"], base.roles["query"]
    (8192, '*.self_attn.q_proj')
"""

from typing import Any

from lowrank_study.config.composition import CONF_FOLDER
from lowrank_study.config.fields import Fields
from lowrank_study.config.run import read_yaml
from lowrank_study.errors import InputError
from lowrank_study.spec import BaseModel, HubRepo

_FOLDER = CONF_FOLDER / "claim" / "architecture"


def published(name: str) -> tuple[dict[str, Any], BaseModel]:
    """Return transformers' settings of a published architecture, and its record.

    Raises:
        InputError: No file has this name.
    """
    known = sorted(file.stem for file in _FOLDER.glob("*.yaml"))
    if name not in known:
        raise InputError(f"architecture {name!r}: valid are {', '.join(known)}")
    fields = roles = Fields(f"{name}: ", read_yaml(_FOLDER / f"{name}.yaml"))
    if "like" in fields.settings:  # the roles of a model of the suite
        like = CONF_FOLDER / "model" / f"{fields.text('like')}.yaml"
        roles = Fields(f"{name}: ", read_yaml(like))
    targets = roles.part("targets")
    base = BaseModel(
        name=name,
        source=HubRepo(repo_id=name, subset=None, revision=None),
        roles=roles.part("roles").texts(),
        target_presets={preset: targets.names(preset) for preset in targets.settings},
        dropout=None,
    )
    return fields.part("config").mapping(), base
