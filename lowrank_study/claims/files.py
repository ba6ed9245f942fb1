"""Reads the claims of `conf/claim/`: one file per document or paper, with a list of claims.

source: 'Hu et al., "LoRA", 2021'
claims:
  - id: hu2021_random_column
    section: Table 7
    claim: Along random directions of rank 4, Wq has a norm of 0.02.
    published: 0.02
    tolerance: {absolute: 0.005}
    measure: {name: formula, of: "61.95 * 4 / 12288"}
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowrank_study.claims.measures import CLAIM_MEASURES
from lowrank_study.claims.verdicts import BOUNDS, UNITS, WIDTHS, Claim, needs_evidence
from lowrank_study.config.composition import CONF_FOLDER
from lowrank_study.config.fields import Fields
from lowrank_study.config.run import read_yaml
from lowrank_study.errors import InputError

CLAIM_FOLDER = CONF_FOLDER / "claim"


def load_claims(folder: Path = CLAIM_FOLDER) -> list[Claim]:
    """Read every claim of a folder, file by file."""
    files = sorted(folder.glob("*.yaml"))
    if not files:
        raise InputError(f"no claims in {folder}: work from a clone of the project")
    claims = []
    for file in files:
        content = read_yaml(file)
        if not isinstance(content, dict) or not isinstance(content.get("claims"), list):
            raise InputError(f"{file}: no list of claims; give a source and a list of claims")
        source = Fields(f"{file.name}: ", {str(k): v for k, v in content.items()}).text("source")
        claims += [read_claim(entry, source=source, where=file.name) for entry in content["claims"]]
    ids = [claim.id for claim in claims]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise InputError(f"two claims are called {twice[0]!r}: give each its own id")
    return claims


def read_claim(entry: Mapping[str, Any], *, source: str, where: str) -> Claim:
    """Read one entry of a claims file."""
    named = f"{where}: {Fields(f'{where}: ', entry).text('id')}: "
    fields = Fields(named, {"unit": "", "note": "", **entry})
    call = fields.part("measure")
    name = call.one_of("name", sorted(CLAIM_MEASURES))
    arguments = {key: call.value(key) for key in call.settings if key != "name"}
    tolerance, amount = _tolerance(named, fields.value("tolerance"))
    published = _published(named, fields.value("published"))
    if isinstance(published, tuple) == (tolerance == "same"):
        raise InputError(
            f"{named}tolerance={tolerance}: 'same' is for words, yes and no; use another tolerance "
            "for numbers"
        )
    if tolerance == "between" and isinstance(published, tuple) and len(published) != 2:
        raise InputError(
            f"{named}published has {len(published)} values; tolerance=between needs two, low and "
            "high"
        )
    function = CLAIM_MEASURES[name]
    signature = inspect.signature(function)
    try:
        signature.bind(**arguments, **({"evidence": None} if needs_evidence(function) else {}))
    except TypeError as error:
        raise InputError(f"{named}measure {name}: {error}; it takes {signature}") from error
    return Claim(
        id=fields.text("id"), source=source, section=fields.text("section"),
        claim=fields.text("claim"), published=published,
        unit=fields.one_of("unit", list(UNITS)), tolerance=tolerance, amount=amount,
        measure=name, arguments=arguments, note=fields.text("note"),
    )  # fmt: skip


def _tolerance(named: str, value: Any) -> tuple[str, float]:
    if isinstance(value, str) and value in BOUNDS:
        return value, 0.0
    if isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) in WIDTHS:
        kind = str(next(iter(value)))
        at_least = 1.0 if kind == "factor" else 0.0
        return kind, Fields(f"{named}tolerance.", value).number(kind, least=at_least)
    raise InputError(
        f"{named}tolerance={value!r}: valid are {', '.join(BOUNDS)}, or one of "
        f"{', '.join(WIDTHS)} with its size, as in {{relative: 0.05}}"
    )


def _published(named: str, value: Any) -> str | bool | tuple[float, ...]:
    if isinstance(value, (str, bool)):
        return value
    if isinstance(value, (int, float)):
        return (float(value),)
    if isinstance(value, list) and value:
        parts = [_published(named, part) for part in value]
        if all(isinstance(part, tuple) for part in parts):
            return tuple(number for part in parts if isinstance(part, tuple) for number in part)
    raise InputError(f"{named}published={value!r}: give a number, numbers, a word, yes or no")
