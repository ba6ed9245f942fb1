"""A stock classifier on texts laid end to end: nothing is computed for padding.

transformers' models take any attention function by name. Ours attends within each text, so
that a batch of texts is one row of tokens, and the model's batch dimension is free to mean
something else: the run (`packing.py`). Three things differ from the stock forward pass, and
leave the scores as they are, up to the rounding of sums in another order:

1. attention goes text by text;
2. the head gets each text's first token (encoders) or last one (decoders), picked out of the row;
3. BERT's and RoBERTa's last layer is computed for these tokens alone, since nothing else of it
   is read. Its keys and values are still needed everywhere.

    >>> unpad(model)
    >>> scores_RNC = unpadded_scores(model, batch, device)

`padded_scores` is the stock forward pass on a filled-up rectangle: the oracle of all this.

Letters: R runs, N texts, T tokens of all texts, D features, H heads, K features of a head,
C classes.
"""

import types
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_outputs import (
    BaseModelOutputWithPoolingAndCrossAttentions as BackboneOutput,
)

from lowrank_study.training.batches import Batch, padded

_NAME = "text_by_text"
_PART_PRODUCT, _LEAST_TOKENS = 512 * 384 * 384, 128
_NARROWED = ("bert", "roberta", "xlm-roberta")
"""Model types whose last layer is laid out as `_narrow_last_layer` expects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """How the texts of the batch that is being computed lie in the row."""

    runs: int
    lengths: tuple[int, ...]
    read_N: Tensor
    """Position in the row of the token that the head reads, of each text."""
    inputs: dict[str, Tensor]
    """What the backbone takes."""


_layout: ContextVar[_Layout] = ContextVar("layout")


def can_unpad(model: nn.Module) -> bool:
    """Whether a model is transformers' own and takes an attention function by name."""
    return isinstance(model, PreTrainedModel) and bool(model._supports_attention_backend)


def unpad(model: nn.Module) -> None:
    """Set up a stock sequence classifier, in place, for `unpadded_scores`."""
    backbone = _backbone(model)
    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, lambda *_, **__: None)
    model.set_attn_implementation(_NAME)  # type: ignore[operator]
    backbone.forward = types.MethodType(_read_one_token_a_text, backbone)
    config: Any = model.config
    if config.model_type in _NARROWED and not config.is_decoder:
        _narrow_last_layer(backbone)


def part_tokens(model: nn.Module) -> int:
    """Return how many tokens are computed at once while training: fewer, the wider the model.

    So many that a matrix product of the model's width is as large as is quick; more would only
    add to the memory that is kept for the backward pass. It does not depend on how many runs are
    packed, so that dropout's masks are the same in a pack and alone.
    """
    config: Any = model.config
    return max(_LEAST_TOKENS, _PART_PRODUCT // int(config.hidden_size) ** 2)


def unpadded_scores(model: nn.Module, batch: Batch, device: torch.device, runs: int = 1) -> Tensor:
    """Return the class scores of texts laid end to end, (R, N, C).

    Parameters
    ----------
    model
        Set up by `unpad`.
    batch
        The texts.
    device
        Where the model is.
    runs
        How many runs the model computes at once; each gets the same texts.
    """
    lengths = torch.tensor(batch.lengths)
    ends = lengths.cumsum(0)
    starts = ends - lengths
    offset = _position_offset(_backbone(model))
    positions = torch.arange(len(batch.ids_T)) - starts.repeat_interleave(lengths) + offset
    read = ends - 1 if hasattr(model, "score") else starts  # decoders have seen all at the end
    inputs = {
        "input_ids": batch.ids_T.to(device).expand(runs, -1),
        "position_ids": positions.to(device).expand(runs, -1),
    }
    if _has_types(model):
        inputs["token_type_ids"] = batch.types_T.to(device).expand(runs, -1)
    if device.type == "meta":
        # A decoder would look into the positions for where texts begin; a mask that is made
        # already, which no attention of ours reads, tells it not to.
        inputs["attention_mask"] = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
    layout = _Layout(runs=runs, lengths=batch.lengths, read_N=read.to(device), inputs=inputs)
    token = _layout.set(layout)
    try:
        # The head sees as many texts of one token as there are texts in all runs.
        read_ids = inputs["input_ids"][:, layout.read_N].reshape(-1, 1)
        logits: Tensor = model(input_ids=read_ids).logits
    finally:
        _layout.reset(token)
    return logits.view(runs, len(batch.lengths), -1)


def padded_scores(model: nn.Module, batch: Batch, device: torch.device, pad_id: int) -> Tensor:
    """Return the class scores of texts filled up to the longest, (1, N, C), by a stock model."""
    inputs = {
        "input_ids": padded(batch.ids_T, batch.lengths, pad_id).to(device),
        "attention_mask": padded(torch.ones_like(batch.ids_T), batch.lengths, 0).to(device),
    }
    if _has_types(model):
        inputs["token_type_ids"] = padded(batch.types_T, batch.lengths, 0).to(device)
    logits: Tensor = model(**inputs).logits
    return logits[None]


def _has_types(model: nn.Module) -> bool:
    config: Any = model.config
    return bool(getattr(config, "type_vocab_size", 0) > 1)


def shared_dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """Drop the same entries in every run: x is (R, ...), or has R times as many rows.

    A run then meets the masks that it would meet alone, and runs differ by nothing else.
    """
    if probability == 0.0 or not training:
        return x
    runs = _layout.get().runs
    of_runs = x.reshape(runs, -1)
    mask = functional.dropout(torch.ones_like(of_runs[0]), probability)
    return (of_runs * mask).view_as(x)


def _backbone(model: nn.Module) -> nn.Module:
    return model.get_submodule(str(model.base_model_prefix))


def _position_offset(backbone: nn.Module) -> int:
    """RoBERTa counts positions from the padding token's number on."""
    embeddings = getattr(backbone, "embeddings", None)
    counts_from_padding = hasattr(embeddings, "create_position_ids_from_input_ids")
    return int(embeddings.padding_idx) + 1 if counts_from_padding else 0  # type: ignore[union-attr]


def positions_of(model: nn.Module) -> int | None:
    """Return how many tokens the model has learnt positions for; None where it computes them."""
    for name, module in model.named_modules():
        is_table = isinstance(module, nn.Embedding)
        if is_table and name.rpartition(".")[2] in ("position_embeddings", "wpe"):
            return int(module.num_embeddings) - _position_offset(_backbone(model))
    return None


def _read_one_token_a_text(self: Any, *_: Any, **__: Any) -> BackboneOutput:
    """Run the stock backbone on the row; give its head one token a text, (R N, 1, D)."""
    layout = _layout.get()
    hidden = type(self).forward(self, **layout.inputs, use_cache=False).last_hidden_state
    if hidden.shape[1] != len(layout.lengths):  # else the last layer was narrowed
        hidden = hidden.index_select(1, layout.read_N)
    hidden = hidden.reshape(-1, 1, hidden.shape[-1])
    pooler = getattr(self, "pooler", None)
    return BackboneOutput(
        last_hidden_state=hidden, pooler_output=None if pooler is None else pooler(hidden)
    )


def _attend(
    module: nn.Module,
    query_RHTK: Tensor,
    key_RHTK: Tensor,
    value_RHTK: Tensor,
    attention_mask: None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend within each text; (R, T, H, K). One query a text where the layer is narrowed."""
    lengths = list(_layout.get().lengths)
    narrowed = query_RHTK.shape[2] != key_RHTK.shape[2]
    causal = bool(getattr(module, "is_causal", True)) and not narrowed
    groups = int(getattr(module, "num_key_value_groups", 1))
    attended = [
        _attend_one(query, key, value, scaling, dropout, causal, groups)
        for query, key, value in zip(
            torch.split(query_RHTK, [1] * len(lengths) if narrowed else lengths, dim=2),
            torch.split(key_RHTK, lengths, dim=2),
            torch.split(value_RHTK, lengths, dim=2),
            strict=True,
        )
    ]
    return torch.cat(attended, dim=2).transpose(1, 2), None


def _attend_one(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    dropout: float,
    causal: bool,
    groups: int,
) -> Tensor:
    if dropout == 0.0:
        return functional.scaled_dot_product_attention(
            query, key, value, is_causal=causal, scale=scaling, enable_gqa=groups > 1
        )
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    weights = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if causal:
        later = torch.ones(weights.shape[-2:], dtype=torch.bool, device=weights.device).triu(1)
        weights = weights.masked_fill(later, -torch.inf)
    return shared_dropout(weights.softmax(-1), dropout, training=True) @ value


def _narrow_last_layer(backbone: Any) -> None:
    attention = backbone.encoder.layer[-1].attention
    attention.self.forward = types.MethodType(_attend_from_read_tokens, attention.self)
    attention.output.register_forward_pre_hook(_keep_read_tokens_of_residual)


def _attend_from_read_tokens(self: Any, hidden_RTD: Tensor, *_: Any, **__: Any) -> Any:
    """Self-attention with the queries of the read tokens alone: (R, T, D) → (R, N, D)."""

    def heads(x_RTD: Tensor) -> Tensor:
        return x_RTD.view(*x_RTD.shape[:2], -1, self.attention_head_size).transpose(1, 2)

    context, weights = _attend(
        self,
        heads(self.query(hidden_RTD.index_select(1, _layout.get().read_N))),
        heads(self.key(hidden_RTD)),
        heads(self.value(hidden_RTD)),
        None,
        scaling=self.scaling,
        dropout=self.dropout.p if self.training else 0.0,
    )
    return context.flatten(-2), weights


def _keep_read_tokens_of_residual(
    _: nn.Module, inputs: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    attended_RND, residual_RTD = inputs
    return attended_RND, residual_RTD.index_select(1, _layout.get().read_N)
