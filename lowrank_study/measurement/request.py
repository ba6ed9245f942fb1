"""Read the settings of `conf/measure_spectra.yaml`, fetch the sources and measure them.

request = read_request(composed("measure_spectra", "before=base", "after=tuned"))
found = measure_request(request, on_progress=print, on_left_out=print)
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from lowrank_study.assets import existing, fetch
from lowrank_study.config.fields import Fields
from lowrank_study.config.sources import hub_repo, is_path
from lowrank_study.errors import InputError
from lowrank_study.files import require_folder
from lowrank_study.measurement.measure import measure_spectra
from lowrank_study.measurement.records import Measurement, MeasureSettings, OnLeftOut, OnProgress
from lowrank_study.measurement.subjects import AdapterOnBase, CheckpointPair, Subject
from lowrank_study.results import measured_folder
from lowrank_study.spectra.spectrum import METHODS
from lowrank_study.spectra.updates import MeasureMethod

SOURCES = ("before", "after", "adapter", "base", "other")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureRequest:
    """The settings of a measurement whose sources are not fetched yet."""

    sources: dict[str, str]
    """Paths or hub ids by the name of their setting, such as "before"."""
    settings: MeasureSettings
    out: Path


def read_request(config: Mapping[str, Any]) -> MeasureRequest:
    """Read the settings; on disk, only the folder `out` is checked.

    Raises:
        InputError: A value is invalid, or the sources do not go together.
    """
    fields = Fields("", config)
    sources = {name: fields.path_text(name) for name in SOURCES if config.get(name) is not None}
    given = set(sources) - {"other"}
    if given not in ({"before", "after"}, {"adapter"}, {"adapter", "base"}):
        named = ", ".join(f"{name}={text}" for name, text in sources.items()) or "nothing"
        raise InputError(
            f"{named} was given; give before=PATH after=PATH for two checkpoints, or "
            "adapter=PATH, with base=PATH if the base is available"
        )
    out = fields.path_of("out") if config.get("out") is not None else Path(_default_out(sources))
    return MeasureRequest(sources=sources, settings=_read_settings(fields), out=require_folder(out))


def _read_settings(fields: Fields) -> MeasureSettings:
    first, last = fields.integer("fit_first", at_least=1), fields.integer("fit_last", at_least=2)
    if first >= last:
        raise InputError(f"fit_first={first} must be smaller than fit_last={last}")
    epsilon = fields.number("intruder_epsilon", above=0.0)
    if epsilon > 1.0:
        raise InputError(f"intruder_epsilon={epsilon} is outside (0, 1]; give a cosine")
    return MeasureSettings(
        method=cast(MeasureMethod, fields.one_of("method", METHODS)),
        compare_with_base=fields.flag("compare_with_base"),
        directions=fields.integer("directions", at_least=1),
        intruder_directions=fields.integer("intruder_directions", at_least=1),
        intruder_epsilon=epsilon,
        fit_first=first,
        fit_last=last,
        allow_pickle=fields.flag("allow_pickle"),
        allow_partial=fields.flag("allow_partial"),
    )


def measure_request(
    request: MeasureRequest, *, on_progress: OnProgress, on_left_out: OnLeftOut
) -> Measurement:
    """Fetch the sources and measure them; see `measure_spectra`."""
    paths = {name: _local(name, text) for name, text in request.sources.items()}
    subject: Subject
    if "adapter" in paths:
        subject = AdapterOnBase(adapter=paths["adapter"], base=paths.get("base"))
    else:
        subject = CheckpointPair(before=paths["before"], after=paths["after"])
    return measure_spectra(
        subject,
        other=paths.get("other"),
        settings=request.settings,
        on_progress=on_progress,
        on_left_out=on_left_out,
    )


def _local(name: str, text: str) -> Path:
    """Return the path of a source; `id@revision` is a hub id at a revision."""
    if is_path(text):
        return existing(text)
    repo_id, _, revision = text.partition("@")
    return fetch(hub_repo(name, repo_id, subset=None, revision=revision or None))


def _default_out(sources: Mapping[str, str]) -> str:
    """Name the folder by two parts of the tuned path, because many end in "checkpoint"."""
    tuned = sources.get("after") or sources["adapter"]
    parts = [part for part in Path(tuned).parts if part not in ("/", "..", "~")]
    named = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts[-2:])).strip("-.")
    return str(measured_folder(Path("results"), named or "update"))
