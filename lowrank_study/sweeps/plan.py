"""Plan a sweep: check all runs, fetch what they need, group them into packs. Nothing is written.

The workers' libraries are loaded meanwhile. The data are checked here, without torch, so that a
mistake in them is reported at once. The launcher then lets a process that has torch check models
and group the runs.
"""

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lowrank_study import assets
from lowrank_study.left_out import check_left_out, in_words
from lowrank_study.loaded import model_folder, splits_of
from lowrank_study.machine import garbage_kept
from lowrank_study.results import runs_folder
from lowrank_study.runs.limits import Limits
from lowrank_study.runs.store import RunStore, TrainedRun
from lowrank_study.spec import RunSpec
from lowrank_study.sweeps.launch import Place, launcher_of
from lowrank_study.sweeps.packs import packs
from lowrank_study.sweeps.settings import check_same_rows, rows_key
from lowrank_study.sweeps.trials import at_any_rate

if TYPE_CHECKING:
    from lowrank_study.training.memory import PeakPrediction

_MOST_PACKED = {"cpu": 4, "cuda": 32}
"""Most runs in a pack: a processor's caches hold no more; a GPU is busier with more."""
_MEMORY_SHARE = 0.8
"""Share of the free memory that packs may use."""
_LOADED_MEANWHILE = "lowrank_study.sweeps.updates"
"""What the command needs after the last run; the launcher's process still loads its libraries."""
_peaks: "dict[tuple[str, str], PeakPrediction | None]" = {}
"""Id of a configuration and hash of its data → predicted memory, which seeds and rates share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSweep:
    """A sweep that can be launched."""

    name: str
    results: Path
    question: str
    packs: list[list[RunSpec]]
    """The runs that are left, grouped into those that are trained together; then the ended ones."""
    costs: dict[str, float]
    """Run id → multiplications and additions of the run."""
    launcher: str
    places: list[Place]
    """Where the workers run."""
    limits: Mapping[str, Limits]
    """Run id → limits above which the run is stopped."""
    lines: list[str]
    """What was read of the data, for users; left-out parts come first."""


@garbage_kept()
def plan_sweep(
    specs: Sequence[RunSpec],
    *,
    name: str,
    results: Path,
    question: str,
    device: str,
    launcher: str,
    workers: int | None,
    pack: int | None,
    allow_partial: bool,
    limits: Mapping[str, Limits],
) -> PlannedSweep:
    """Plan the runs of a sweep; see `sweep` for the arguments."""
    unique = list({spec.run_id: spec for spec in specs}.values())
    store, chosen = RunStore(runs_folder(results)), launcher_of(launcher)
    if left := store.left(unique, limits):
        chosen.prepare()
    lines = check_data(
        left, ended=store.ended([spec.run_id for spec in unique]), allow_partial=allow_partial
    )
    importlib.import_module(_LOADED_MEANWHILE)
    planned, costs, places = chosen.call(
        _grouped,
        left,
        unique,
        results,
        device=device,
        launcher=launcher,
        workers=workers,
        pack=pack,
    )
    return PlannedSweep(
        name=name,
        results=results,
        question=question,
        packs=planned,
        costs=costs,
        launcher=launcher,
        places=places,
        limits=limits,
        lines=lines,
    )


@garbage_kept()
def _grouped(
    left: Sequence[RunSpec],
    unique: Sequence[RunSpec],
    results: Path,
    *,
    device: str,
    launcher: str,
    workers: int | None,
    pack: int | None,
) -> tuple[list[list[RunSpec]], dict[str, float], list[Place]]:
    """Check the models of the runs that are left; return all packs, costs and workers' places."""
    check_models(left, results)
    places = launcher_of(launcher).places(workers, device, max(1, len(left)))
    from lowrank_study.sweeps.effort import Effort

    effort = Effort()
    costs = {spec.run_id: effort.of(spec) for spec in unique}
    planned = packs(
        left,
        limit=lambda spec: most_packed(spec, places, pack),
        workers=len(places),
        cost=lambda spec: costs[spec.run_id],
    )
    waiting = {spec.run_id for spec in left}
    ended = [[spec] for spec in unique if spec.run_id not in waiting]
    return [*planned, *ended], costs, places[: max(1, len(planned))]


def check_data(
    specs: Sequence[RunSpec],
    *,
    ended: Sequence[TrainedRun] = (),
    allow_partial: bool = False,
) -> list[str]:
    """Fetch what runs need, refuse bad data, and return what was read of them.

    The parts that are left out come first.

    Raises:
        InputError: A source can't be reached, or data are bad.
    """
    lines = dict.fromkeys(line for run in ended for line in run.record.get("left_out", ()))
    splits = {rows_key(spec): splits_of(spec) for spec in specs}
    for made in splits.values():  # one by one: files of two tasks may share a name
        check_left_out(made.account.left_out, allow_partial=allow_partial)
    left_out = dict.fromkeys(part for made in splits.values() for part in made.account.left_out)
    lines |= dict.fromkeys(in_words(left_out))
    lines |= dict.fromkeys(line for made in splits.values() for line in made.account.lines)
    if specs:
        check_same_rows(ended, {key: made.sha256 for key, made in splits.items()})
    return list(lines)


def check_models(specs: Sequence[RunSpec], results: Path) -> None:
    """Refuse what can't be trained.

    Raises:
        InputError: A text, target or rank does not fit, or the disk is too small.
    """
    from lowrank_study.training.models import check_fits

    but_for_seeds = {replace(spec, seed=0, data_seed=0).run_id: spec for spec in specs}
    for spec in but_for_seeds.values():
        check_fits(spec)
    assets.require_free_space(results, sum(map(_checkpoint_bytes, specs)))


def _checkpoint_bytes(spec: RunSpec) -> int:
    if not spec.train.read_test:  # it chooses a rate, and keeps no model
        return 0
    weights = sum(file.stat().st_size for file in model_folder(spec.model).glob("*.safetensors"))
    return spec.method.checkpoint_bytes(weights)


def most_packed(spec: RunSpec, places: Sequence[Place], most: int | None) -> int:
    """Return how many runs like this one fit into a process's share of the memory, up to `most`."""
    if spec.method.pack_key is None:
        return 1
    from lowrank_study.training.fit import torch_device
    from lowrank_study.training.memory import free_memory_bytes
    from lowrank_study.training.models import model_without_weights
    from lowrank_study.training.unpadded import can_unpad

    device = torch_device(places[0].device)
    if not can_unpad(model_without_weights(spec)):
        return 1
    free = free_memory_bytes(device)
    sharing = sum(torch_device(place.device) == device for place in places)
    share = math.inf if free is None else _MEMORY_SHARE * free / sharing
    if (predicted := _predicted_peak(spec)) is None:
        return 1
    sizes = range(2, (most or _MOST_PACKED.get(device.type, 1)) + 1)
    return max((size for size in sizes if predicted.peak(size) <= share), default=1)


def _predicted_peak(spec: RunSpec) -> "PeakPrediction | None":
    """Predict the memory of a run, once for all seeds and learning rates of its configuration."""
    from lowrank_study.training.memory import predict_peak

    spec = at_any_rate(spec)
    key = spec.run_id, splits_of(spec).sha256
    if key not in _peaks:
        _peaks[key] = predict_peak(spec)
    return _peaks[key]
