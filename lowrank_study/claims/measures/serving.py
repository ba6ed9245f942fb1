"""Costs of adapters at inference, timed on the embedded model.

    rounds = measure_serving(rounds=15)      # some seconds
    rounds["merged"] / rounds["base"]        # one ratio per round

Every round runs each way once, so other load on the machine affects all ways alike. Each round
starts with another way, so that no way always finds the same caches. A claim's number is the median
over rounds of the ratio within a round.
"""

import copy
import time
from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from lowrank_study.claims.measures.evidence import Evidence, part
from lowrank_study.claims.measures.intervals import median_interval
from lowrank_study.claims.measures.outcome import Lacking, Measured, Outcome, measure
from lowrank_study.config.run import compose
from lowrank_study.loaded import model_folder
from lowrank_study.methods.layers.linear import adapted_modules
from lowrank_study.methods.layers.lora import add_lora, lora_modules
from lowrank_study.methods.layers.modules import target_modules
from lowrank_study.methods.lora import Lora
from lowrank_study.training.models import load_model

TEXTS, TOKENS, ADAPTERS, WARM_UP = 8, 32, 4, 2


class MixedAdapters(nn.Module):
    """One frozen map with a separate adapter for each text of a batch.

    y_n = x_n Wᵀ + b + scaling (x_n A_nᵀ) B_nᵀ, with the factors of all texts in batched products.
    """

    def __init__(self, base: nn.Module, A_NRI: Tensor, B_NOR: Tensor, scaling: float) -> None:
        super().__init__()
        self.base, self.scaling = base, scaling
        self.A_NIR = A_NRI.transpose(1, 2).contiguous()
        self.B_NRO = (B_NOR.transpose(1, 2) * scaling).contiguous()

    def forward(self, x_NTI: Tensor) -> Tensor:
        """Return the outputs, (texts, tokens, out)."""
        y_NTO: Tensor = self.base(x_NTI)
        return torch.baddbmm(y_NTO, torch.bmm(x_NTI, self.A_NIR), self.B_NRO)


def measure_serving(*, rounds: int) -> pd.DataFrame:
    """Time the ways to serve adapters on the CPU.

    Returns:
        Seconds, one row per round. `base`, `merged` and `unmerged` are a batch with one adapter.
        `mixed` (one batch, several adapters), `loop` (one batch per adapter) and `copies` (one
        batch per merged copy) serve `ADAPTERS` adapters.
    """
    ways = _ways()
    names = list(ways)
    rows = []
    with torch.inference_mode():
        for number in range(-WARM_UP, rounds):
            first = number % len(names)
            row = {}
            for name in names[first:] + names[:first]:
                start = time.perf_counter()
                ways[name]()
                row[name] = time.perf_counter() - start
            if number >= 0:
                rows.append(row)
    return pd.DataFrame(rows)


def _ways() -> dict[str, Callable[[], None]]:
    spec = compose("method=lora", "method.rank=8", "method.target=attention_qv")
    assert isinstance(spec.method, Lora)
    base = load_model(
        type(spec.task), model_folder(spec.model), number_of_labels=2, dropout=0.0
    ).eval()
    names = target_modules(base, spec.model, spec.method.target)
    adapted = [_adapted(base, names, spec.method, seed) for seed in range(ADAPTERS)]
    merged = [copy.deepcopy(model) for model in adapted]
    for model in merged:
        for _, module in adapted_modules(model):
            module.merge()
    generator = torch.Generator().manual_seed(0)
    texts = torch.randint(1000, 20000, (TEXTS, TOKENS), generator=generator)
    parts = texts.chunk(ADAPTERS)
    mixed = _mixed(base, adapted, TEXTS // ADAPTERS)
    expected = torch.cat([m(p).logits for m, p in zip(adapted, parts, strict=True)])
    assert torch.allclose(mixed(texts).logits, expected, atol=1e-4)
    return {
        "base": lambda: _run([base], [texts]),
        "merged": lambda: _run([merged[0]], [texts]),
        "unmerged": lambda: _run([adapted[0]], [texts]),
        "mixed": lambda: _run([mixed], [texts]),
        "loop": lambda: _run(adapted, parts),
        "copies": lambda: _run(merged, parts),
    }


def _run(models: Sequence[nn.Module], parts: Sequence[Tensor]) -> None:
    for model, texts in zip(models, parts, strict=True):
        model(texts)


def _adapted(base: nn.Module, names: list[str], lora: Lora, seed: int) -> nn.Module:
    """Return the model with a random adapter; it shares the weights of `base`."""
    model = copy.deepcopy(base, {id(weight): weight for weight in base.parameters()})
    add_lora(model, dict.fromkeys(names, lora))
    generator = torch.Generator().manual_seed(seed)
    for _, module in lora_modules(model):
        nn.init.normal_(module.B_OR, std=0.02, generator=generator)
    return model.eval()


def _mixed(base: nn.Module, adapted: list[nn.Module], texts_each: int) -> nn.Module:
    """Return one model that serves every adapter, each for `texts_each` rows of the batch."""
    model = copy.deepcopy(base)
    factors = [dict(lora_modules(one)) for one in adapted]
    for name, first in factors[0].items():
        A_NRI, B_NOR = (
            torch.stack([getattr(one[name], which).detach() for one in factors])
            .repeat_interleave(texts_each, dim=0)
            for which in ("A_RI", "B_OR")
        )  # fmt: skip
        parent, _, child = name.rpartition(".")
        mixed = MixedAdapters(first.base, A_NRI, B_NOR, first.scaling)
        setattr(model.get_submodule(parent), child, mixed)
    return model.eval()


@measure
def serving_ratio(evidence: Evidence, way: str, over: str) -> Outcome:
    """Return the time of one way to serve over another's, as the median over rounds."""
    rounds = part(evidence.serving, "times on this machine: live=true")
    if missing := [name for name in (way, over) if name not in rounds.columns]:
        raise Lacking(f"times of {missing[0]}; there are {', '.join(rounds.columns)}")
    how = (
        f"time of {way} over {over}, {TEXTS} texts of {TOKENS} tokens, MiniLM, r = 8, on the CPU; "
        f"median of {len(rounds)} interleaved rounds"
    )
    return Measured(values=(median_interval(rounds[way] / rounds[over]),), how=how)
