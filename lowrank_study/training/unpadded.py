"""A stock classifier on texts laid end to end: nothing is computed for padding.

A batch of texts is one row of tokens, and the model's batch dimension is free to mean
something else: the run (`packing.py`). Three things differ from the stock forward pass, and
leave the scores as they are, up to the rounding of sums in another order:

1. attention goes text by text (`attention.py`);
2. the head gets the vector that it reads for each text: that of the first token (encoders), that of
   the last token that is not padding (decoders), or the mean of all;
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
from transformers import PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutputWithPoolingAndCrossAttentions as BackboneOutput,
)

from lowrank_study.training.attention import attend, register, texts_of
from lowrank_study.training.batches import Batch, padded

_PART_PRODUCT, _LEAST_TOKENS = 512 * 384 * 384, 128
_NARROWED = ("bert", "roberta", "xlm-roberta")
"""Model types whose last layer is laid out as `_narrow_last_layer` expects."""
_READ_AT_THE_END = ("modernbert-decoder", "ctrl")
"""Decoders whose head is not called `score`."""
_POSITION_TABLES = ("position_embeddings", "wpe", "embed_positions", "positions_embed")
"""Names of the module, or the buffer, with one row for each position."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """The inputs of the backbone, and which of its outputs the head reads."""

    inputs: dict[str, Tensor]
    read_N: Tensor | None
    """Position in the row of the token that is read for each text; `None`: the mean of all."""
    lengths: tuple[int, ...]


_reading: ContextVar[_Reading] = ContextVar("reading")


def can_unpad(model: nn.Module) -> bool:
    """Whether a model is from transformers, has one stack, and accepts an attention function.

    Others (T5 and BART, DeBERTa, MPNet, BLOOM, Falcon …) are computed with padded texts.
    """
    if not (isinstance(model, PreTrainedModel) and model._supports_attention_backend):
        return False
    config: Any = model.config
    averages_scores = getattr(config, "classifier_pooling", "") == "late"  # EuroBERT
    of_text = config.get_text_config() is config
    return of_text and not config.is_encoder_decoder and not averages_scores


def unpad(model: nn.Module) -> None:
    """Set up a stock sequence classifier, in place, for `unpadded_scores`."""
    backbone = _backbone(model)
    model.set_attn_implementation(register())  # type: ignore[operator]
    backbone.forward = types.MethodType(_read_of_each_text, backbone)
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
    row = {
        "input_ids": batch.ids_T,
        "position_ids": _positions(_backbone(model), batch),
        # No token is padding. Without this mask, decoders would infer texts from the positions.
        "attention_mask": torch.ones_like(batch.ids_T),
    }
    if _has_types(model):
        row["token_type_ids"] = batch.types_T
    read = _read_tokens(model, batch)
    reading = _Reading(
        inputs={name: values.to(device).expand(runs, -1) for name, values in row.items()},
        read_N=None if read is None else read.to(device),
        lengths=batch.lengths,
    )
    texts = len(batch.lengths)
    token = _reading.set(reading)
    try:
        with texts_of(batch.lengths, runs):
            # The head sees as many texts of one token as all runs have texts.
            one_token_each = torch.zeros(runs * texts, 1, dtype=torch.long, device=device)
            logits: Tensor = model(input_ids=one_token_each).logits
    finally:
        _reading.reset(token)
    return logits.view(runs, texts, -1)


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


def _backbone(model: nn.Module) -> nn.Module:
    return model.get_submodule(str(model.base_model_prefix))


def _texts_T(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return for each token the number of its text, and for each text its first token's place."""
    lengths = torch.tensor(batch.lengths)
    return torch.arange(len(lengths)).repeat_interleave(lengths), lengths.cumsum(0) - lengths


def _positions(backbone: nn.Module, batch: Batch) -> Tensor:
    """Return each token's position in its text, counted as the stock model counts."""
    text_T, starts_N = _texts_T(batch)
    padding = _padding_index(backbone)
    if padding is None:
        return torch.arange(len(text_T)) - starts_N[text_T]
    counted_T = (batch.ids_T != padding).long()  # a text may contain the padding token
    until_T = counted_T.cumsum(0)
    before_N = (until_T - counted_T)[starts_N]
    return (until_T - before_N[text_T]) * counted_T + padding


def _padding_index(backbone: nn.Module) -> int | None:
    """Return the number from which RoBERTa and related models count positions; else None."""
    embeddings = getattr(backbone, "embeddings", None)
    found = getattr(embeddings, "padding_idx", None)
    # XLM returns its word table, whose padding_idx does not affect positions.
    return None if found is None or isinstance(embeddings, nn.Embedding) else int(found)


def _read_tokens(model: nn.Module, batch: Batch) -> Tensor | None:
    """Return where the head reads each text, chosen as in the stock model; None: everywhere."""
    config: Any = model.config
    if getattr(config, "classifier_pooling", "") == "mean":  # ModernBERT
        return None
    text_T, starts_N = _texts_T(batch)
    if not (hasattr(model, "score") or config.model_type in _READ_AT_THE_END):
        return starts_N
    # In decoders, the last token that is not padding has seen all others.
    there_T = batch.ids_T != config.pad_token_id
    place_T = torch.where(there_T, torch.arange(len(text_T)), starts_N[text_T])
    return starts_N.scatter_reduce(0, text_T, place_T, "amax")


def counts_from_padding(model: nn.Module) -> bool:
    """Whether a model counts positions from its padding id, as RoBERTa does."""
    return _padding_index(_backbone(model)) is not None


def positions_of(model: nn.Module) -> int | None:
    """Return for how many tokens the model has positions; None if it computes them."""
    padding = _padding_index(_backbone(model))
    found = []
    for name, table in [*model.named_modules(), *model.named_buffers()]:
        if name.rpartition(".")[2] not in _POSITION_TABLES:
            continue
        if isinstance(table, nn.Embedding):  # OPT and BART begin at the table's own offset
            first = int(getattr(table, "offset", 0)) if padding is None else padding + 1
            found.append(table.num_embeddings - first)
        elif isinstance(table, Tensor):  # GPT-J's sines
            found.append(table.shape[0])
    return min(found, default=None)


def _read_of_each_text(self: Any, *_: Any, **__: Any) -> BackboneOutput:
    """Run the stock backbone on the row; pass the head its vector of each text, (R N, 1, D)."""
    reading = _reading.get()
    hidden = type(self).forward(self, **reading.inputs, use_cache=False).last_hidden_state
    if reading.read_N is None:
        hidden = torch.stack([of.mean(1) for of in hidden.split(list(reading.lengths), 1)], 1)
    elif hidden.shape[1] != len(reading.lengths):  # else the last layer was narrowed
        hidden = hidden.index_select(1, reading.read_N)
    hidden = hidden.reshape(-1, 1, hidden.shape[-1])
    return BackboneOutput(last_hidden_state=hidden, pooler_output=_pooled(self, hidden))


def _pooled(backbone: Any, hidden_N1D: Tensor) -> Tensor | None:
    pooler = getattr(backbone, "pooler", None)
    if isinstance(pooler, nn.Linear):  # ALBERT has the activation beside the pooler
        pooled: Tensor = backbone.pooler_activation(pooler(hidden_N1D[:, 0]))
        return pooled
    return None if pooler is None else pooler(hidden_N1D)


def _narrow_last_layer(backbone: Any) -> None:
    attention = backbone.encoder.layer[-1].attention
    attention.self.forward = types.MethodType(_attend_from_read_tokens, attention.self)
    attention.output.register_forward_pre_hook(_keep_read_tokens_of_residual)


def _attend_from_read_tokens(self: Any, hidden_RTD: Tensor, *_: Any, **__: Any) -> Any:
    """Self-attention with the queries of the read tokens alone: (R, T, D) → (R, N, D)."""

    def heads(x_RTD: Tensor) -> Tensor:
        return x_RTD.view(*x_RTD.shape[:2], -1, self.attention_head_size).transpose(1, 2)

    context, weights = attend(
        self,
        heads(self.query(hidden_RTD.index_select(1, _one_token_each()))),
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
    return attended_RND, residual_RTD.index_select(1, _one_token_each())


def _one_token_each() -> Tensor:
    read_N = _reading.get().read_N
    assert read_N is not None
    return read_N
