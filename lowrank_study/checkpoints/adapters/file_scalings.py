"""Look up the factor alpha / rank of each module in a file without a config.

The first of these sources decides:

1. The module's own alpha tensor.
2. diffusers' header `lora_adapter_metadata`, with a PEFT config per model of a pipeline.
3. kohya's header `ss_network_alpha`; convolutions may have their own rank and alpha.
4. Otherwise the rank itself, as in all these programs, so the factor is 1. The report begins by
   saying so.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lowrank_study.checkpoints.adapters.peft_settings import read_settings
from lowrank_study.checkpoints.adapters.saving import WEIGHTS_NAME
from lowrank_study.checkpoints.formats import CONFIG_NAME, parse_json, shown
from lowrank_study.checkpoints.weights import Weights
from lowrank_study.errors import InputError


@dataclass(frozen=True, slots=True)
class FileScalings:
    """Looks up the factors of one adapter's modules."""

    weights: Weights
    modules: Mapping[str, Any]
    ranks: Mapping[str, int]
    components: Mapping[str, str]
    where: str

    def resolve(self, alphas: Mapping[str, float]) -> tuple[dict[str, float], tuple[str, ...]]:
        """Return every module's factor, and the assumptions made for missing alphas."""
        scalings = {
            module: alphas[module] / rank for module, rank in self.ranks.items() if module in alphas
        }
        for header in (self._of_diffusers, self._of_kohya):
            scalings |= header([module for module in self.ranks if module not in scalings])
        rest = [module for module in self.ranks if module not in scalings]
        self._refuse_peft(rest)
        scalings |= dict.fromkeys(rest, 1.0)
        if not rest:
            return scalings, ()
        return scalings, (
            f"no alpha for {'some modules' if len(rest) < len(self.ranks) else 'any module'} "
            f"({len(rest)} of {len(self.ranks)}): taken as their rank, as kohya, diffusers and "
            "ComfyUI do; another alpha would scale every singular value by alpha / rank",
        )

    def _refuse_peft(self, modules: Sequence[str]) -> None:
        for module in modules:
            stored = self.weights.info(self.modules[module]["A"].tensor).name
            if stored.startswith("base_model.model."):
                raise InputError(
                    f"{self.where}: has PEFT's names ({shown(stored)}) but no {CONFIG_NAME}, "
                    f"so its scaling is unknown; put the config beside it and call "
                    f"the file {WEIGHTS_NAME}"
                )

    def _of_diffusers(self, modules: Sequence[str]) -> dict[str, float]:
        """Return the factors from diffusers' header."""
        text = self.weights.metadata.get("lora_adapter_metadata")
        if not isinstance(text, str) or not modules:
            return {}
        where = f"{self.where}: lora_adapter_metadata"
        held = parse_json(text.encode(), where)
        scalings: dict[str, float] = {}
        for component in dict.fromkeys(self.components.get(module, "") for module in modules):
            prefix = f"{component}." if component else ""
            own = {
                key.removeprefix(prefix): value
                for key, value in held.items()
                if key.startswith(prefix)
            }
            mine = [module for module in modules if self.components.get(module, "") == component]
            if "lora_alpha" in own and "r" in own:
                settings = read_settings({"peft_type": "LORA"} | own, where)
                inner = {module.removeprefix(prefix): self.ranks[module] for module in mine}
                found, _ = settings.scalings(inner, where)
                scalings |= {module: found[module.removeprefix(prefix)] for module in mine}
        return scalings

    def _of_kohya(self, modules: Sequence[str]) -> dict[str, float]:
        """Return the factors from kohya's header."""
        text = self.weights.metadata.get("ss_network_args")
        args = (
            parse_json(text.encode(), f"{self.where}: ss_network_args")
            if isinstance(text, str) and text.strip().startswith("{")
            else {}
        )
        linear = _number(self.weights.metadata.get("ss_network_alpha"))
        dim = _number(self.weights.metadata.get("ss_network_dim"))
        kernel, kernel_dim = _number(args.get("conv_alpha")), _number(args.get("conv_dim"))
        if kernel is None and kernel_dim is not None:
            kernel = 1.0  # the default of kohya's scripts
        scalings: dict[str, float] = {}
        for module in modules:
            shape = self.weights.shape(self.modules[module]["A"].tensor)
            convolution = math.prod(shape[2:]) > 1 and kernel is not None
            alpha, rank = (kernel, kernel_dim) if convolution else (linear, dim)
            if alpha is None:
                continue
            if rank is not None and rank != self.ranks[module]:
                raise InputError(
                    f"{self.where}: module {shown(module)} has rank {self.ranks[module]}, the "
                    f"header says {rank:g} and alpha {alpha:g}, so its alpha is unclear; add "
                    f"a tensor {shown(module)}.alpha to the file"
                )
            # kohya's scripts replace an alpha of 0 by the rank
            scalings[module] = alpha / self.ranks[module] if alpha else 1.0
        return scalings


def _number(value: Any) -> float | None:
    """Return a number from a header's text; None if it isn't one ("Dynamic")."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number >= 0 else None
