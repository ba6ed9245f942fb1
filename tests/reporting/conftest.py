"""A made-up but realistic study: MiniLM's shapes, full fine-tuning against LoRA."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lowrank_study.answers.controls import CONTROL_COLUMNS
from lowrank_study.answers.functional_rank import TRUNCATION_COLUMNS
from lowrank_study.answers.sufficient_rank import COMPARISON_COLUMNS
from lowrank_study.reporting.drawing import figure
from lowrank_study.reporting.report import write_report
from lowrank_study.reporting.section import Section
from lowrank_study.reporting.setting import SettingData, settings_data
from lowrank_study.reporting.study import StudyTables, checked
from lowrank_study.spectra.measures import shown_in
from lowrank_study.tasks.metric import ACCURACY

SHAPES = {
    "query": (384, 384),
    "key": (384, 384),
    "value": (384, 384),
    "attention_output": (384, 384),
    "mlp_up": (1536, 384),
    "mlp_down": (384, 1536),
}
ADAPTED = {"attention_qv": ("query", "value"), "all_linear": tuple(SHAPES)}
LAYERS = 6
TOTAL = 22_713_986
HEAD = 770
Curve = tuple[str, str, int, str, np.ndarray]


def energy_rank(singular_values: np.ndarray, energy: float) -> int:
    held = np.cumsum(singular_values**2) / np.sum(singular_values**2)
    return int(np.searchsorted(held, energy - 1e-12) + 1)


def build_study(
    *,
    ranks: Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
    targets: Sequence[str] = ("attention_qv", "all_linear"),
    seeds: int = 3,
    full: bool = True,
    losses: bool = True,
    tasks: Sequence[str] = ("rotten_tomatoes",),
    role_names: dict[str, str] | None = None,
    layers: int = LAYERS,
    roles: Sequence[str] = tuple(SHAPES),
) -> StudyTables:
    rng = np.random.default_rng(7)
    runs: list[dict[str, object]] = []
    spectra: list[dict[str, object]] = []
    values: list[Curve] = []
    configurations: list[tuple[str, str | None, int | None]] = (
        [("full", None, None)] if full else []
    )
    configurations += [("lora", target, rank) for target in targets for rank in ranks]
    for task in tasks:
        for method, target, rank in configurations:
            for seed in range(seeds):
                stem = f"{task}-{method}" + (f"-{target}-r{rank}" if rank else "")
                run_id = f"{stem}-s{seed}"
                status, message = "done", ""
                if losses and (rank, target, seed) == (64, "all_linear", 1):
                    status, message = "diverged", "training loss is NaN at step 212"
                if losses and (rank, target, seed) == (2, "attention_qv", 2):
                    status, message = "failed", "out of memory: 23.4 GiB asked for"
                runs.append(_run(rng, run_id, task, method, target, rank, seed, status, message))
                if status == "done":
                    adapted = roles if target is None else ADAPTED[target]
                    matrices = [(layer, role) for layer in range(layers) for role in adapted]
                    for layer, role in matrices:
                        name = (role_names or {}).get(role, role)
                        row, sigma = _update(rng, layer, role, rank)
                        where = {
                            "run_id": run_id,
                            "module": f"bert.encoder.layer.{layer}.{name}",
                            "layer": layer,
                            "role": name,
                        }
                        spectra.append({**where, **row})
                        values.append((run_id, where["module"], layer, name, sigma))
    return StudyTables(
        title="Rotten Tomatoes on MiniLM: how low-rank is fine-tuning?",
        question="Which adapter rank is needed to reach what full fine-tuning reaches?",
        runs=pd.DataFrame(runs).astype({"adapter_rank": "Int64"}),
        spectra=pd.DataFrame(spectra).astype({"layer": "Int64"}),
        singular_values=_long(values),
        metric=ACCURACY,
        comparison=pd.DataFrame(columns=list(COMPARISON_COLUMNS)),
        test_sets=(),
        planned=len(runs),
        rates=None,
        truncation=None,
        controls=None,
        forgetting=None,
        curves=None,
        left_out=(),
        provenance={
            "commit": "4f1d0a7c",
            "versions": {"python": "3.11.7", "torch": "2.13.0+cpu", "numpy": "2.4.1"},
            "machine": {"processor": "2 cores", "memory": "24 GiB"},
            "data": {"rotten_tomatoes sha256": "b4d0c48ae0ae74784455ed9a15899c88c20911de"},
        },
    )


def _run(
    rng: np.random.Generator,
    run_id: str,
    task: str,
    method: str,
    target: str | None,
    rank: int | None,
    seed: int,
    status: str,
    message: str,
) -> dict[str, object]:
    done = status == "done"
    if rank is None:
        adapted, trainable, mean = TOTAL, TOTAL, 0.784
    else:
        assert target is not None
        adapted = LAYERS * sum(rank * sum(SHAPES[role]) for role in ADAPTED[target])
        trainable = adapted + HEAD
        ceiling = 0.771 if target == "attention_qv" else 0.781
        mean = ceiling - 0.028 * rank**-0.8
    accuracy = float(np.round(mean + rng.normal(0, 0.0045), 4)) if done else np.nan
    seconds = (412.0 if rank is None else 305 + 0.4 * rank) * rng.uniform(0.97, 1.04)
    return {
        "run_id": run_id,
        "task": task,
        "model": "all-MiniLM-L6-v2",
        "method": method,
        "adapter_rank": rank,
        "target": target,
        "alpha": None if rank is None else 16.0,
        "scaling_rule": None if rank is None else "alpha_over_rank",
        "learning_rate": 5e-5 if rank is None else 5e-4,
        "seed": seed,
        "status": status,
        "message": message,
        "validation_score": accuracy + 0.004,
        "validation_loss": 0.5,
        "test_score": accuracy,
        "test_macro_f1": accuracy - 0.001,
        "test_loss": 0.47 if done else np.nan,
        "train_loss": 0.31 if done else np.nan,
        "train_score": min(accuracy + 0.09, 1.0) if done else np.nan,
        "chance": 0.5037,
        "test_examples": 2588,
        "steps": 620,
        "trainable_parameters": trainable,
        "adapted_parameters": adapted,
        "total_parameters": TOTAL,
        "checkpoint_bytes": trainable * 4 + 2048,
        "train_seconds": seconds if done else np.nan,
        "evaluate_seconds": 9.1 if done else np.nan,
        "examples_per_second": 620 * 32 / seconds if done else np.nan,
        "peak_memory_bytes": round(1.62e9 if rank is None else 1.11e9 + rank * 1.5e6)
        if done
        else None,
        "pack_size": 1 if rank is None else 4,
        "precision": "float32",
    }


def _update(
    rng: np.random.Generator, layer: int, role: str, rank: int | None
) -> tuple[dict[str, object], np.ndarray]:
    out, inside = SHAPES[role]
    smaller = min(out, inside)
    count = smaller if rank is None else min(rank, smaller)
    index = np.arange(1, count + 1)
    if rank is None:
        steep = 0.35 + 0.17 * layer + (0.15 if role.startswith("mlp") else 0.0)
        sigma = index**-steep * (1 - index / (count + 12)) ** 0.6
    else:
        sigma = np.exp(-0.9 * (index - 1) / max(1.0, 0.35 * count))
    sigma = np.sort(sigma * rng.uniform(0.95, 1.05, count))[::-1] * 0.4 / sigma[0]
    norm = float(np.linalg.norm(sigma))
    floor = 2e-5 if not (rank is None and role == "key" and layer < 2) else 0.6
    shares = sigma / sigma.sum()
    row: dict[str, object] = {
        **{measure.name: 1.0 for measure in shown_in("sweep")},
        "out_features": out,
        "in_features": inside,
        "storage_dtype": "float32",
        "frobenius_norm": norm,
        "base_frobenius_norm": 24.0,
        "relative_norm": norm / 24.0,
        "numerical_rank": count,
        "stable_rank": float(np.sum(sigma**2) / sigma[0] ** 2),
        "energy_rank_90": energy_rank(sigma, 0.90),
        "energy_rank_95": energy_rank(sigma, 0.95),
        "energy_rank_99": energy_rank(sigma, 0.99),
        "effective_rank": float(np.exp(-np.sum(shares * np.log(shares)))),
        "participation_ratio": float(np.sum(sigma**2) ** 2 / np.sum(sigma**4)),
        "sigma1_over_sigma10": float(sigma[0] / sigma[9]) if count > 9 else np.nan,
        "mp_edge": 0.06,
        "rank_above_mp_edge": int(np.sum(sigma > 0.06)),
        "gavish_donoho_rank": int(np.sum(sigma > 0.08)),
        "rounding_floor": floor,
        "resolvable": floor < 0.1,
    }
    return row, sigma


def _long(values: list[Curve]) -> pd.DataFrame:
    counts = [len(sigma) for *_, sigma in values]
    names = ("run_id", "module", "layer", "role")
    frame = pd.DataFrame([value[:4] for value in values], columns=names)
    frame = frame.loc[frame.index.repeat(counts)].reset_index(drop=True)
    frame["index"] = np.concatenate([np.arange(1, count + 1) for count in counts])
    frame["singular_value"] = np.concatenate([sigma for *_, sigma in values])
    return frame.astype({"layer": "Int64"})


LOSS = {0: 0.20, 1: 0.10, 4: 0.05, 16: 0.001, 384: 0.0}
"""Kept rank → what is lost of the run's accuracy."""


def truncation_of(study: StudyTables, *, seeds: int = 3) -> pd.DataFrame:
    """Make up the truncated updates of a study's full fine-tuning."""
    rows: list[tuple[object, ...]] = []
    full = study.runs[(study.runs["method"] == "full") & (study.runs["seed"] < seeds)]
    for run_id, accuracy in zip(full["run_id"], full["test_score"], strict=True):
        cuts = [("all", "", k, 12 * k, k / 384, loss) for k, loss in LOSS.items()]
        cuts.append(("noise_cut", "", None, 100, 0.8, 0.01))
        if run_id.endswith("s0"):
            cuts += [("layers", part, None, 300, 0.2, loss) for part, loss in
                     (("outside", 0.15), ("10", 0.11), ("2", 0.12))]  # fmt: skip
            cuts += [("roles", part, None, 300, 0.2, loss) for part, loss in
                     (("value", 0.06), ("query", 0.07))]  # fmt: skip
        rows += [(run_id, *cut[:5], accuracy - cut[5], 1000) for cut in cuts]
    return pd.DataFrame(rows, columns=list(TRUNCATION_COLUMNS)).astype({"kept_rank": "Int64"})


def controls_of(study: StudyTables) -> pd.DataFrame:
    """Make up the controls of a study: ranks 10 for training, 190 for noise, and so on."""
    run_id = study.runs["run_id"].iloc[0]
    base = {"task": study.runs["task"].iloc[0], "model": study.runs["model"].iloc[0]}
    base |= {"run_id": run_id, "resolvable": True, "out_features": 384, "in_features": 384}
    rows = []
    for layer in (0, 1, None):
        for role in ("query", "value"):
            place = {**base, "module": f"{layer}.{role}", "layer": layer, "role": role}
            for control, rank in (("trained", 10), ("noise", 190), ("weight_decay", 150)):
                rank += 0 if layer is not None else 1000
                ranks = {"energy_rank_90": rank, "gavish_donoho_rank": rank // 10}
                rows.append({**place, **ranks, "control": control})
            for step in (1, 2, 4):
                rows.append(
                    {**place, "control": "training", "step": step, "energy_rank_90": 100 // step,
                     "resolvable": (step, role) != (1, "value")}
                )  # fmt: skip
            for k in (1, 2):
                pair = {"directions": k, "similarity_right_chance": k / 384,
                        "similarity_left_chance": k / 512}  # fmt: skip
                found = {"similarity_right": 0.3 * k, "similarity_left": 0.2 * k}
                noise = {"similarity_right": 0.003, "similarity_left": 0.002}
                rows.append({**place, **pair, "control": "seeds", **found})
                rows.append({**place, **pair, "control": "noise_pair", **noise})
    return pd.DataFrame(rows, columns=list(CONTROL_COLUMNS)).astype(
        {"layer": "Int64", "step": "Int64", "directions": "Int64", "resolvable": "boolean"}
    )


SIGN = {"s": "sufficient", "i": "inferior", "o": "open"}


def compared(study: StudyTables, decisions: dict[int, str], **other: object) -> StudyTables:
    """Give the study with a comparison of LoRA on attention_qv that came out like this."""
    rows = [
        {
            "task": "rotten_tomatoes",
            "model": "all-MiniLM-L6-v2",
            "method": "lora",
            "target": "attention_qv",
            "adapter_rank": rank,
            "margin_share": 0.0,
            "margin": 0.02,
            "seeds": 6,
            "lost": 0,
            "looks": 1,
            "most_seeds": None,
            "stop": "",
            "examples": 2588,
            "score": 0.771,
            "score_low_95": 0.752,
            "score_high_95": 0.79,
            "difference": -0.0123,
            "standard_error": 0.004,
            "degrees_of_freedom": 12.0,
            "low_95": -0.021,
            "high_95": -0.004,
            "lower_limit": -0.0194,
            "upper_limit": -0.0052,
            "decision": SIGN[sign],
            "chance": 0.504,
            "retention": 0.957,
            "retention_low_95": 0.931,
            "retention_high_95": 0.984,
            "retention_bounded": True,
            **other,
        }
        for rank, sign in decisions.items()
    ]
    frame = pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS))
    empty = {"spectra": study.spectra.iloc[:0], "singular_values": study.singular_values.iloc[:0]}
    return replace(study, comparison=frame, **empty)


def data_of(study: StudyTables) -> SettingData:
    return settings_data(checked(study))[0]


def said(section: Section | None) -> dict[str, str]:
    """Return what a section says, by topic."""
    return {} if section is None else {item.topic: item.text for item in section.findings}


def without_spectra(study: StudyTables) -> StudyTables:
    return replace(
        study, spectra=study.spectra.iloc[:0], singular_values=study.singular_values.iloc[:0]
    )


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave drawing out, which is what takes time, where a test reads words or tables."""
    empty = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"></svg>'
    monkeypatch.setattr(figure, "drawn", lambda draw, width: None)
    monkeypatch.setattr(figure, "svg_of", lambda canvas: empty)
    monkeypatch.setattr(figure, "pdf_of", lambda canvas: b"")


@pytest.fixture(scope="session")
def make_study() -> Callable[..., StudyTables]:
    return build_study


@pytest.fixture(scope="session")
def whole_study() -> StudyTables:
    return build_study()


@pytest.fixture(scope="session")
def small_study() -> StudyTables:
    return build_study(ranks=(1, 4), targets=("attention_qv",))


@pytest.fixture(scope="session")
def thin_study() -> StudyTables:
    """Everything a report can hold, of as few matrices as that takes: drawing is what is slow."""
    return build_study(ranks=(1, 4), targets=("attention_qv",), layers=2, roles=("query", "key"))


@pytest.fixture(scope="session")
def whole_data(whole_study: StudyTables) -> SettingData:
    return data_of(whole_study)


@pytest.fixture(scope="session")
def report_folder(thin_study: StudyTables, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(thin_study, tmp_path_factory.mktemp("report")).parent
