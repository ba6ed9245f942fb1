"""LoRA in one file without a config: diffusers, ComfyUI and kohya's scripts.

transformer.transformer_blocks.0.attn.to_q.lora_A.weight      diffusers, ComfyUI (diffusion_model.)
unet.mid_block.attentions.0.to_q.lora.down.weight             diffusers until 2023
down_blocks.0.attn1.processor.to_q_lora.down.weight           its first layout
text_encoder.layers.0.q_proj.lora_linear_layer.down.weight    its text encoders
lora_unet_down_blocks_0_to_q.lora_down.weight                 kohya: `_` for every dot
lora_unet_down_blocks_0_to_q.alpha                            alpha of one module

delta = alpha / rank * B A. A module without its own alpha uses the header's:
`lora_adapter_metadata` (diffusers) or `ss_network_alpha` (kohya). If that is missing too, all these
programs set alpha to the rank, so the factor is 1; the report begins by saying so.

Sources: diffusers/loaders/lora_conversion_utils.py, ComfyUI's comfy/lora.py, networks/lora.py of
kohya's sd-scripts.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from lowrank_study.checkpoints.adapters.content import Content, Sorter, checked_ranks
from lowrank_study.checkpoints.adapters.peft_settings import read_settings
from lowrank_study.checkpoints.adapters.saving import CONFIG_NAME, WEIGHTS_NAME
from lowrank_study.checkpoints.formats.json_text import parse_json
from lowrank_study.checkpoints.formats.source_file import shown
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
    components = {module: found for module in modules if (found := _component(module))}
    ranks = checked_ranks(weights, modules, where)
    scalings, assumed = _Scalings(weights, modules, ranks, components, where).resolve(alphas)
    dora = has_magnitude and all("magnitude" in parts for parts in modules.values())
    if has_magnitude and not dora:
        raise InputError(
            f"{where}: some of its modules have DoRA magnitudes and some have none; save it again"
        )
    flat = all("." not in module for module in modules)
    return Content(
        kind="dora" if dora else "kohya" if flat else "lora",
        config=config,
        modules=modules,
        scalings=scalings,
        embeddings=frozenset(),
        components=components,
        shared={},
        saved={},
        token_rows={},
        token_indices={},
        bias_updates={},
        base_layers={},
        assumed=assumed,
        flags=(),
        left_out=sorter.left_out(),
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
            sorter.spoil(
                unread[1],
                name,
                f"tensor {shown(name)} belongs to a method that can't be read exactly as LoRA",
                "merge it into the base in its own library and compare checkpoints",
            )
        else:
            sorter.leave_out(name, "not part of any known adapter format")
    if len(adapters) > 1:
        raise InputError(
            f"{where}: holds the adapters {', '.join(map(shown, sorted(adapters)))} in one file; "
            "save each in a separate file"
        )
    return sorter, alphas, has_magnitude


def _parsed(name: str) -> tuple[str, str, str]:
    """Return a tensor's module, part and adapter name; empty texts for absent ones."""
    if found := _PROCESSOR.fullmatch(name):
        projection = "to_out.0" if found[2] == "to_out" else found[2]
        part = {"down": "A", "up": "B", "alpha": "alpha"}[found[3]]
        return f"{found[1]}.{projection}", part, ""
    for end, part in _ENDS:
        if found := end.fullmatch(name):
            return found["module"], part, found.groupdict().get("adapter") or ""
    return "", "", ""


def _component(module: str) -> str:
    """Return the pipeline model that a module belongs to, or an empty text."""
    found = _COMPONENT.match(module)
    return (found[1] or found[2]) if found else ""


class _Scalings:
    """Looks up the factor before a module's product in several places, in order."""

    def __init__(
        self,
        weights: Weights,
        modules: Mapping[str, Any],
        ranks: Mapping[str, int],
        components: Mapping[str, str],
        where: str,
    ) -> None:
        self._weights, self._modules, self._ranks = weights, modules, ranks
        self._components, self._where = components, where
        self._header = weights.metadata

    def resolve(self, alphas: Mapping[str, float]) -> tuple[dict[str, float], tuple[str, ...]]:
        """Return every module's factor, and the assumptions made for missing alphas."""
        scalings = {
            module: alphas[module] / rank
            for module, rank in self._ranks.items()
            if module in alphas
        }
        scalings |= self._of_diffusers([m for m in self._ranks if m not in scalings])
        scalings |= self._of_kohya([m for m in self._ranks if m not in scalings])
        rest = [module for module in self._ranks if module not in scalings]
        self._refuse_peft(rest)
        scalings |= dict.fromkeys(rest, 1.0)
        if not rest:
            return scalings, ()
        return scalings, (
            f"no alpha for {'some modules' if len(rest) < len(self._ranks) else 'any module'} "
            f"({len(rest)} of {len(self._ranks)}): taken as their rank, as kohya, diffusers and "
            "ComfyUI do; another alpha would scale every singular value by alpha / rank",
        )

    def _refuse_peft(self, modules: list[str]) -> None:
        for module in modules:
            stored = self._weights.info(self._modules[module]["A"].tensor).name
            if stored.startswith("base_model.model."):
                raise InputError(
                    f"{self._where}: has PEFT's names ({shown(stored)}) but no {CONFIG_NAME}, "
                    f"so its scaling is unknown; put the config beside it and call "
                    f"the file {WEIGHTS_NAME}"
                )

    def _of_diffusers(self, modules: list[str]) -> dict[str, float]:
        """Read factors from diffusers' header, which has a PEFT config per model of a pipeline."""
        text = self._header.get("lora_adapter_metadata")
        if not isinstance(text, str) or not modules:
            return {}
        where = f"{self._where}: lora_adapter_metadata"
        held = parse_json(text.encode(), where)
        scalings: dict[str, float] = {}
        for component in dict.fromkeys(self._components.get(module, "") for module in modules):
            prefix = f"{component}." if component else ""
            own = {
                key.removeprefix(prefix): value
                for key, value in held.items()
                if key.startswith(prefix)
            }
            mine = [module for module in modules if self._components.get(module, "") == component]
            if "lora_alpha" in own and "r" in own:
                settings = read_settings({"peft_type": "LORA"} | own, where)
                inner = {module.removeprefix(prefix): self._ranks[module] for module in mine}
                found, _ = settings.scalings(inner, where)
                scalings |= {module: found[module.removeprefix(prefix)] for module in mine}
        return scalings

    def _of_kohya(self, modules: list[str]) -> dict[str, float]:
        """Read factors from kohya's header; convolutions may have their own rank and alpha."""
        text = self._header.get("ss_network_args")
        args = (
            parse_json(text.encode(), f"{self._where}: ss_network_args")
            if isinstance(text, str) and text.strip().startswith("{")
            else {}
        )
        linear = _number(self._header.get("ss_network_alpha"))
        dim = _number(self._header.get("ss_network_dim"))
        kernel, kernel_dim = _number(args.get("conv_alpha")), _number(args.get("conv_dim"))
        if kernel is None and kernel_dim is not None:
            kernel = 1.0  # as kohya's scripts take it then
        scalings: dict[str, float] = {}
        for module in modules:
            shape = self._weights.shape(self._modules[module]["A"].tensor)
            convolution = math.prod(shape[2:]) > 1 and kernel is not None
            alpha, rank = (kernel, kernel_dim) if convolution else (linear, dim)
            if alpha is None:
                continue
            if rank is not None and rank != self._ranks[module]:
                raise InputError(
                    f"{self._where}: module {shown(module)} has rank {self._ranks[module]}, the "
                    f"header says {rank:g} and alpha {alpha:g}, so its alpha is unclear; add "
                    f"a tensor {shown(module)}.alpha to the file"
                )
            # kohya's scripts replace an alpha of 0 by the rank
            scalings[module] = alpha / self._ranks[module] if alpha else 1.0
        return scalings


def _number(value: Any) -> float | None:
    """Return a number from a header, whose values are texts; None for others ("Dynamic")."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number >= 0 else None
