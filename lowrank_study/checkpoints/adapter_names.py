"""Which tensor of an adapter file is what: factors, magnitudes, full weights, token rows.

base_model.model.encoder.layer.0.query.lora_A.weight      module "encoder.layer.0.query", A
base_model.model.classifier.weight                        a weight trained in full
lora_unet_down_blocks_0_to_q.lora_down.weight             kohya's A of that module
"""

import re
from dataclasses import dataclass

from lowrank_study.checkpoints.adapter_settings import Settings
from lowrank_study.checkpoints.paths import shown
from lowrank_study.checkpoints.weights import Weights
from lowrank_study.errors import InputError

_ENDS = {
    "lora": {
        "lora_A.weight": "A",
        "lora_B.weight": "B",
        "lora_embedding_A": "A",
        "lora_embedding_B": "B",
        "lora_magnitude_vector": "magnitude",
        "lora_magnitude_vector.weight": "magnitude",
    },
    "kohya": {
        "lora_down.weight": "A",
        "lora_up.weight": "B",
        "alpha": "alpha",
    },
    "loha": {f"hada_{part}": f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b")},
    "lokr": {
        f"lokr_{part}": f"lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")
    },
    "vera": {"vera_lambda_b": "vera_lambda_b", "vera_lambda_d": "vera_lambda_d"},
    "trainable_tokens": {},
}
_NEEDED = {
    "lora": {"A", "B"},
    "pissa": {"A", "B"},
    "olora": {"A", "B"},
    "kohya": {"A", "B"},
    "dora": {"A", "B", "magnitude"},
    "loha": {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"},
    "lokr": set[str](),
    "vera": {"vera_lambda_b", "vera_lambda_d"},
    "trainable_tokens": set[str](),
}
_TOKENS = re.compile(r"(.+?)(?:\.token_adapter)?\.trainable_tokens_delta")
_METHOD_WORDS = re.compile(
    r"(^|[._])(lora|hada|lokr|vera|oft|boft|ia3|dora|fourier|trainable_tokens)_"
)
"""Names with these words belong to a method; where they aren't understood, it is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterTensors:
    """The tensors of an adapter, sorted by what they are."""

    modules: dict[str, dict[str, str]]
    """Module path to its parts: "A", "B", "magnitude", ... to tensor name."""
    shared: dict[str, str]
    """Parts that all modules share (VeRA's projections)."""
    saved: dict[str, str]
    """Name in the base model to the tensor, for weights trained in full."""
    token_rows: dict[str, str]
    """Name of an embedding's weight in the base model to the tensor with its trained rows."""
    flags: tuple[str, ...]
    """What a report has to say."""


def sort_tensors(weights: Weights, settings: Settings, where: str) -> AdapterTensors:
    """Sort an adapter's tensors by their names.

    Raises:
        InputError: a factor without its partner, an empty one, or a name not understood.
    """
    kind = settings.kind
    ends = _ENDS["lora" if kind in ("dora", "pissa", "olora") else kind]
    modules: dict[str, dict[str, str]] = {}
    shared: dict[str, str] = {}
    saved: dict[str, str] = {}
    token_rows: dict[str, str] = {}
    flags: list[str] = []
    for name, reason in weights.skipped.items():
        raise InputError(
            f"{where}: tensor {shown(name)} can't be read ({reason}); it was saved unfinished "
            "(ZeRO-3 shards?): save the adapter again"
        )
    for name in weights.names():
        end = next((end for end in ends if name.endswith("." + end)), None)
        tokens = _TOKENS.fullmatch(name)
        if end is not None:
            module = name[: -len(end) - 1]
            parts = modules.setdefault(module, {})
            if ends[end] in parts:
                raise InputError(
                    f"{where}: module {shown(module)} has {shown(parts[ends[end]])} and "
                    f"{shown(name)}; one of them doesn't belong: save the adapter again"
                )
            parts[ends[end]] = name
            if end.startswith("lora_embedding"):
                parts["embedding"] = name
        elif tokens:
            token_rows[f"{tokens[1]}.weight"] = name
        elif kind == "vera" and name in ("base_model.vera_A", "base_model.vera_B"):
            shared[name.removeprefix("base_model.")] = name
        elif name.endswith(".lora_B.bias"):
            flags.append(f"{shown(name)} adds a bias that is no part of the weight's update")
        elif kind == "kohya" or _METHOD_WORDS.search(name):
            raise InputError(
                f"{where}: tensor {shown(name)} belongs to a method that can't be read exactly as "
                f"{kind}; merge it into the base in its own library and compare checkpoints"
            )
        else:
            # with bias="all" PEFT also writes its wrapper's own copies; it doesn't load them
            plain = name.replace(".base_layer.", ".").replace(".modules_to_save.", ".")
            if ".original_module." in name or (".modules_to_save." in name and plain in weights):
                continue
            if plain in saved:
                raise InputError(
                    f"{where}: {shown(saved[plain])} and {shown(name)} are the same weight; "
                    "save the adapter again"
                )
            saved[plain] = name
    tensors = AdapterTensors(
        modules=modules, shared=shared, saved=saved, token_rows=token_rows, flags=tuple(flags)
    )
    _check(tensors, settings, where)
    return tensors


def _check(tensors: AdapterTensors, settings: Settings, where: str) -> None:
    kind = settings.kind
    for module, parts in tensors.modules.items():
        missing = _NEEDED[kind] - parts.keys()
        if missing:
            raise InputError(
                f"{where}: module {shown(module)} has {', '.join(sorted(parts))} but no "
                f"{', '.join(sorted(missing))}; it was saved unfinished: save the adapter again"
            )
        if "magnitude" in parts and kind != "dora":
            raise InputError(
                f"{where}: module {shown(module)} has a DoRA magnitude, but the config says "
                "use_dora false; config and weights are of different runs: save it again"
            )
        if "embedding" in parts and kind != "lora":
            raise InputError(
                f"{where}: {kind} on the embedding {shown(module)} can't be read exactly; "
                "merge it into the base with PEFT and compare checkpoints"
            )
        kinds = {part.rpartition(".")[2].startswith("lora_embedding") for part in parts.values()}
        if "embedding" in parts and len(kinds) > 1:
            raise InputError(
                f"{where}: module {shown(module)} mixes factors of an embedding and of a linear "
                "map; save the adapter again"
            )
    if kind == "vera" and set(tensors.shared) != {"vera_A", "vera_B"}:
        raise InputError(
            f"{where}: VeRA without its projections vera_A and vera_B; "
            "train or save it with save_projection=True"
        )
    if not (tensors.modules or tensors.saved or tensors.token_rows):
        raise InputError(f"{where}: holds no tensors of an adapter; give another file")
    if kind == "kohya" and not tensors.modules:
        raise InputError(
            f"{where}: is no adapter (no lora_down and lora_up); open a whole model as weights"
        )
