"""The kinds of adapters that can be read, one row each."""

from dataclasses import dataclass

_A_AND_B = ("A", "B")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How the tensors of one kind of adapter make an update."""

    parts: tuple[str, ...]
    """PEFT's names of a module's parts if they aren't the factors A and B."""
    needed: tuple[str, ...]
    """Parts that every module needs."""
    has_factors: bool
    """Whether the modules have factors A and B; PEFT itself computes other updates."""
    needs_base: bool
    """Whether an update depends on the base weight."""
    numbers: tuple[str, ...]
    """Settings of an adapter_config.json that must be numbers other than 0."""


def _with_factors(*, needs_base: bool, needed: tuple[str, ...] = _A_AND_B) -> Kind:
    return Kind(
        parts=(),
        needed=needed,
        has_factors=True,
        needs_base=needs_base,
        numbers=("lora_alpha", "r"),
    )


def _by_peft(*parts: str, needed: tuple[str, ...], numbers: tuple[str, ...]) -> Kind:
    return Kind(parts=parts, needed=needed, has_factors=False, needs_base=True, numbers=numbers)


_LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
_VERA = ("vera_lambda_b", "vera_lambda_d")

KINDS = {
    "lora": _with_factors(needs_base=False),
    "kohya": _with_factors(needs_base=False),  # LoRA with kohya's names
    "gguf": _with_factors(needs_base=False),  # LoRA with llama.cpp's names
    "dora": _with_factors(needs_base=True, needed=(*_A_AND_B, "magnitude")),
    "pissa": _with_factors(needs_base=True),
    "olora": _with_factors(needs_base=True),
    "loha": _by_peft(*_LOHA, needed=_LOHA, numbers=("alpha", "r")),
    "lokr": _by_peft(*_LOKR, needed=(), numbers=("alpha", "r")),
    "vera": _by_peft(*_VERA, needed=_VERA, numbers=("r",)),
    "trainable_tokens": _by_peft(needed=(), numbers=()),
}
