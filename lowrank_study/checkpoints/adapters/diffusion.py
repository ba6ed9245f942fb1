"""Read LoRA in one file without a config: diffusers, ComfyUI and kohya's scripts.

    transformer.transformer_blocks.0.attn.to_q.lora_A.weight   diffusers; ComfyUI (diffusion_model.)
    unet.mid_block.attentions.0.to_q.lora.down.weight          diffusers until 2023
    down_blocks.0.attn1.processor.to_q_lora.down.weight        its first layout
    text_encoder.layers.0.q_proj.lora_linear_layer.down.weight its text encoders
    lora_unet_down_blocks_0_to_q.lora_down.weight              kohya: `_` for every dot
    lora_unet_down_blocks_0_to_q.alpha                         alpha of one module

delta = alpha / rank * B A; see `file_scalings` for alpha.

Sources: diffusers/loaders/lora_conversion_utils.py, ComfyUI's comfy/lora.py, networks/lora.py of
kohya's sd-scripts.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lowrank_study.checkpoints.adapters.content import Content, Sorter
from lowrank_study.checkpoints.adapters.file_scalings import FileScalings
from lowrank_study.checkpoints.formats import shown
from lowrank_study.checkpoints.weights import Weights
from lowrank_study.errors import InputError

_ADAPTER = r"(?:\.(?P<adapter>[^.]+))?"
_ENDS = tuple(
    (re.compile(rf"(?P<module>.+?)\.{end}"), part)
    for end, part in (
        (rf"lora_(?:A|down){_ADAPTER}\.weight", "A"),
        (rf"lora_(?:B|up){_ADAPTER}\.weight", "B"),
        (r"lora(?:_linear_layer)?\.down\.weight", "A"),
        (r"lora(?:_linear_layer)?\.up\.weight", "B"),
        (r"(?:lora\.|lora_linear_layer\.)?alpha", "alpha"),
        (rf"lora_magnitude_vector(?!\.weight\.){_ADAPTER}\.weight", "magnitude"),
        (r"lora_magnitude_vector", "magnitude"),
    )
)
_PROCESSOR = re.compile(
    r"(.+?)(?:\.processor)?\.((?:to|add)_\w+?)_lora\.(down|up|alpha)(?:\.weight)?"
)
_UNREAD = re.compile(
    r"(.+?)\.(?:lora_mid|dora_scale|hada_|lokr_|oft_|boft_|glora|ia3|diff|set_weight|reshape_weight"
    r"|a1|a2|b1|b2|w_norm|b_norm)"
)
"""Parts of LyCORIS's other methods, and other ways to change a module."""

_COMPONENT = re.compile(
    r"lora_(unet|te\d?|transformer|prior)_"
    r"|(unet|transformer(?:_\d)?|text_encoder(?:_\d)?|diffusion_model|prior)\."
)
_TEXTUAL_INVERSION = frozenset(("emb_params", "clip_l", "clip_g", "t5xxl", "*"))


def read_diffusion(weights: Weights, config: Mapping[str, Any], where: str) -> Content:
    """Sort the tensors of a LoRA in a single file."""
    names = set(weights.names())
    if names and names <= _TEXTUAL_INVERSION:
        raise InputError(
            f"{where}: is a textual inversion embedding, which changes no weight; there is no "
            "update to measure: give a LoRA"
        )
    sorter, alphas, has_magnitude = _sorted(weights, where)
    modules = sorter.whole_modules()
    if not modules:
        raise InputError(
            f"{where}: contains no factors of an adapter (neither lora_A and lora_B nor lora_down "
            "and lora_up); compare a whole model with its base as two checkpoints"
        )
    dora = has_magnitude and all("magnitude" in parts for parts in modules.values())
    if has_magnitude and not dora:
        raise InputError(
            f"{where}: some of its modules have DoRA magnitudes and some have none; save it again"
        )
    components = {module: found for module in modules if (found := _component(module))}
    ranks = sorter.ranks(modules)
    scalings, assumed = FileScalings(weights, modules, ranks, components, where).resolve(alphas)
    flat = all("." not in module for module in modules)
    kind = "dora" if dora else "kohya" if flat else "lora"
    return replace(
        sorter.content(kind, config, modules, scalings), components=components, assumed=assumed
    )


def _sorted(weights: Weights, where: str) -> tuple[Sorter, dict[str, float], bool]:
    """Return the parts and the alpha of each module, and whether there are magnitudes."""
    sorter = Sorter(weights, where, needed={"A", "B"})
    alphas: dict[str, float] = {}
    adapters: set[str] = set()
    has_magnitude = False
    for name in (*weights.names(), *weights.skipped):
        module, part, adapter = _parsed(name)
        if adapter:
            adapters.add(adapter)
        if part == "alpha":
            alphas[module] = weights.read_number(name)
        elif name in weights.skipped:
            if part:
                reason = weights.skipped[name]
                raise InputError(
                    f"{where}: tensor {shown(name)} can't be read ({reason}); get the file again"
                )
        elif part:
            sorter.add(module, part, name)
            has_magnitude = has_magnitude or part == "magnitude"
        elif unread := _UNREAD.match(name):
            sorter.spoil(unread[1], name, "LoRA")
        else:
            sorter.leave_out(name, "not part of any known adapter format")
    if len(adapters) > 1:
        raise InputError(
            f"{where}: holds the adapters {', '.join(map(shown, sorted(adapters)))} in one file; "
            "save each in a separate file"
        )
    return sorter, alphas, has_magnitude


def _parsed(name: str) -> tuple[str, str, str]:
    """Return a tensor's module, part and adapter name; absent ones are empty."""
    if found := _PROCESSOR.fullmatch(name):
        projection = "to_out.0" if found[2] == "to_out" else found[2]
        part = {"down": "A", "up": "B", "alpha": "alpha"}[found[3]]
        return f"{found[1]}.{projection}", part, ""
    for end, part in _ENDS:
        if found := end.fullmatch(name):
            return found["module"], part, found.groupdict().get("adapter") or ""
    return "", "", ""


def _component(module: str) -> str:
    """Return the pipeline model that a module belongs to, or an empty string."""
    found = _COMPONENT.match(module)
    return (found[1] or found[2]) if found else ""
