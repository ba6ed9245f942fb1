"""Read PEFT's layout: factors, magnitudes, full weights and token rows.

    base_model.model.encoder.layer.0.query.lora_A.weight      module "encoder.layer.0.query", A
    base_model.model.encoder.layer.0.query.base_layer.weight  a copy of its W0
    base_model.model.classifier.weight                        a weight trained in full

A training script that saves a state dict itself leaves the adapter's name in the keys
(`lora_A.default.weight`); it is removed.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lowrank_study.checkpoints.adapters.content import Content, Sorter
from lowrank_study.checkpoints.adapters.kinds import KINDS
from lowrank_study.checkpoints.adapters.peft_settings import PeftSettings, read_settings
from lowrank_study.checkpoints.formats import CONFIG_NAME, shown
from lowrank_study.checkpoints.weights import Weights
from lowrank_study.errors import InputError

_LORA = {
    "lora_A": r"\.weight",
    "lora_B": r"\.weight",
    "lora_embedding_A": "",
    "lora_embedding_B": "",
    "lora_magnitude_vector": r"(?:\.weight)?",
}
"""Part names with their suffix; an adapter's name may come between the two."""

_FACTORS = {"lora_A": "A", "lora_B": "B", "lora_magnitude_vector": "magnitude"}
_EMBEDDING = {"lora_embedding_A": "B", "lora_embedding_B": "A"}
"""An embedding's weight (tokens, dimensions) is (B A)^T, so its two factors swap roles."""

_WRAPPED = ".base_layer.out_proj"
"""Suffix of the second matrix of a MultiheadAttention, which PEFT wraps separately.

The forward pass and the merge add its update twice (peft/tuners/lora/layer.py, up to 0.21).
"""
_TOKENS = re.compile(r"(.+?)(?:\.token_adapter)?\.trainable_tokens_delta(?:\.([^.]+))?")
_BASE_LAYER = re.compile(r"(.+?)(?:\.token_adapter)?\.base_layer\.weight")
_BIAS = re.compile(r"(.+)\.lora_B(?:\.[^.]+)?\.bias")
_METHOD = re.compile(
    r"(?:(.*?)[._])?(?:lora|hada|lokr|vera|oft|boft|ia3|dora|fourier|trainable_tokens)_"
)
"""Prefixes of tensors that belong to a method; unknown ones are left out."""


def read_peft(weights: Weights, config: Mapping[str, Any], where: str) -> Content:
    """Sort the tensors of an adapter that PEFT saved."""
    settings = read_settings(config, f"{where}: {CONFIG_NAME}")
    names = _Names(weights, settings, where)
    modules = names.sorter.whole_modules()
    if not (modules or names.saved or names.token_rows):
        raise InputError(f"{where}: holds no tensors of an adapter; give another file")
    if settings.kind == "vera" and set(names.shared) != {"vera_A", "vera_B"}:
        raise InputError(
            f"{where}: VeRA without its projections vera_A and vera_B; "
            "train or save it with save_projection=True"
        )
    scalings: dict[str, float] = {}
    flags: list[str] = []
    if KINDS[settings.kind].has_factors:
        ranks = names.sorter.ranks(modules)
        scalings, flags = settings.scalings(ranks, where)
    for module in names.doubled & scalings.keys():
        scalings[module] *= 2
        flags.append(f"{shown(module)}: measured as twice B A, as PEFT's model adds it twice")
    bias_updates = names.bias_updates(scalings)
    return replace(
        names.sorter.content(settings.kind, config, modules, scalings),
        embeddings=frozenset(names.embeddings),
        shared=names.shared,
        saved=names.saved,
        token_rows=names.token_rows,
        token_indices={name: settings.token_indices(name, where) for name in names.token_rows},
        bias_updates=bias_updates,
        base_layers=names.base_layers,
        flags=(*settings.flags, *names.flags, *flags),
    )


class _Names:
    """Sorts the names of one adapter."""

    def __init__(self, weights: Weights, settings: PeftSettings, where: str) -> None:
        self._weights, self._where, self._kind = weights, where, settings.kind
        kind = KINDS[settings.kind]
        stems = _LORA if kind.has_factors else dict.fromkeys(kind.parts, "")
        self._ends = [
            (stem, re.compile(rf"(.+)\.{stem}(?:\.(?!weight$)([^.]+))?{end}"))
            for stem, end in stems.items()
        ]
        self.sorter = Sorter(weights, where, needed=set(kind.needed))
        self.embeddings: set[str] = set()
        self.shared: dict[str, str] = {}
        self.saved: dict[str, str] = {}
        self.token_rows: dict[str, str] = {}
        self.base_layers: dict[str, str] = {}
        self.doubled: set[str] = set()
        self._biases: dict[str, str] = {}
        self.flags: list[str] = []
        self._forms: dict[str, bool] = {}
        self._refuse_unreadable()
        parsed = {name: self._parsed(name) for name in weights.names()}
        adapters = sorted({found[2] for found in parsed.values() if found and found[2]})
        if len(adapters) > 1:
            raise InputError(
                f"{where}: holds the adapters {', '.join(map(shown, adapters))} in one file; "
                "save one of them: model.save_pretrained(..., selected_adapters=[...])"
            )
        wrapper = ".modules_to_save." + "".join(f"{adapter}." for adapter in adapters)
        for name, found in parsed.items():
            if found is None:
                self._take_other(name, wrapper)
            else:
                self._take_part(name, *found[:2])

    def bias_updates(self, scalings: Mapping[str, float]) -> dict[str, tuple[str, float]]:
        """Return the biases of lora_B with their factors; leave out those beside a trained bias."""
        updates: dict[str, tuple[str, float]] = {}
        for module, tensor in self._biases.items():
            if module in scalings and f"{module}.bias" not in self.saved:
                updates[f"{module}.bias"] = tensor, scalings[module]
            else:
                self.sorter.leave_out(tensor, "a bias of lora_B beside the module's own")
        return updates

    def _refuse_unreadable(self) -> None:
        for name, reason in self._weights.skipped.items():
            if reason.startswith("empty") or _METHOD.match(name):
                raise InputError(
                    f"{self._where}: tensor {shown(name)} can't be read ({reason}); it was saved "
                    "unfinished (ZeRO-3 shards?): save the adapter again"
                )

    def _parsed(self, name: str) -> tuple[str, str, str | None] | None:
        """Return the part, the module and the adapter's name in the name of a tensor."""
        for stem, end in self._ends:
            if found := end.fullmatch(name):
                return stem, found[1], found[2]
        tokens = _TOKENS.fullmatch(name)
        return None if tokens is None else ("tokens", tokens[1], tokens[2])

    def _take_part(self, name: str, stem: str, module: str) -> None:
        """Add a part of a module, or the rows of trained tokens."""
        if stem == "tokens":
            self.token_rows[f"{module}.weight"] = name
            return
        if stem == "lora_magnitude_vector" and self._kind != "dora":
            raise InputError(
                f"{self._where}: module {shown(module)} has a DoRA magnitude, but the config "
                "says use_dora false; config and weights are from different runs: save it again"
            )
        if _WRAPPED in module:
            module = module.replace(_WRAPPED, _WRAPPED.removeprefix(".base_layer"))
            self.doubled.add(module)
        embedding = stem in _EMBEDDING
        self._refuse_mixed(module, name, embedding=embedding)
        if embedding:
            self.embeddings.add(module)
        part = (_EMBEDDING if embedding else _FACTORS).get(stem, stem)
        self.sorter.add(module, part, name, transposed=embedding)

    def _refuse_mixed(self, module: str, name: str, *, embedding: bool) -> None:
        if embedding and self._kind != "lora":
            raise InputError(
                f"{self._where}: {self._kind} on the embedding {shown(module)} can't be read "
                "exactly; merge it into the base with PEFT and compare checkpoints"
            )
        self._forms.setdefault(module, embedding)
        if self._forms[module] != embedding:
            raise InputError(
                f"{self._where}: module {shown(module)} mixes factors of an embedding and of a "
                f"linear map ({shown(name)}); one of them doesn't belong: save the adapter again"
            )

    def _take_other(self, name: str, wrapper: str) -> None:
        """Add a tensor that is not a part of a module: a copy, a bias, a weight trained in full."""
        if self._kind == "vera" and name in ("base_model.vera_A", "base_model.vera_B"):
            self.shared[name.removeprefix("base_model.")] = name
            return
        if copy := _BASE_LAYER.fullmatch(name):  # frozen; PEFT saves it beside an embedding
            self.base_layers[copy[1]] = name
            self.sorter.pass_over(name)
            return
        if bias := _BIAS.fullmatch(name):
            self.flags.append(f"{shown(name)} adds a bias that is not part of the weight's update")
            self._biases[bias[1]] = name
            return
        if method := _METHOD.match(name):
            self.sorter.spoil(method[1] or "", name, self._kind)
            return
        # With bias="all" PEFT also saves its wrapper's own copies, but never loads them.
        plain = name.replace(".base_layer.", ".").replace(wrapper, ".")
        plain = plain.replace(".modules_to_save.", ".")
        if ".original_module." in name or (".modules_to_save." in name and plain in self._weights):
            self.sorter.pass_over(name)
            return
        if plain in self.saved:
            raise InputError(
                f"{self._where}: {shown(self.saved[plain])} and {shown(name)} are the same weight; "
                "save the adapter again"
            )
        self.saved[plain] = name
