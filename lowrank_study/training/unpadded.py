"""A forward pass on concatenated texts, in which nothing is computed for padding.

A batch of texts is one row of tokens, and the model's batch dimension holds the runs of a pack
(`packing.py`). The scores equal those of the stock forward pass, up to the rounding of sums in
another order. Three parts differ:

1. Attention goes text by text (`attention.py`).
2. The head gets one vector for each text: that of the first token (encoders), that of the last
   token that is not padding (decoders), or the mean of all tokens. If the task scores tokens, the
   head gets the token before each scored one, and the result is the loss of each scored token
   (`vocabulary.py`).
3. The last layer of BERT and RoBERTa computes its output only for the tokens that the head reads.

    >>> unpad(model)
    >>> scores_RNC = unpadded_scores(model, batch, device)

`padded_scores` is the stock forward pass on padded texts, with which this one is compared.

Letters: R runs, N texts, T tokens of all texts, S scored tokens, D features, K features of a head,
C classes, V words of the vocabulary. Where a task scores tokens, scores are (R, S) instead of
(R, N, C).
"""

import types
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutputWithPoolingAndCrossAttentions as BackboneOutput,
)

from lowrank_study.methods.layers.linear import share_casts
from lowrank_study.methods.layers.modules import task_of
from lowrank_study.methods.layers.products import uses_onednn
from lowrank_study.training.attention import attend, register, texts_of
from lowrank_study.training.batches import Batch, padded
from lowrank_study.training.elementwise import use_native_functions
from lowrank_study.training.embeddings import keep_gradients
from lowrank_study.training.norms import use_native_norms
from lowrank_study.training.vocabulary import plain_losses, token_losses

_MOST_TOKENS, _LEAST_TOKENS = 512, 128
_PART_FEATURES = {"fp32": 512 * 384, "bf16": 512 * 576}
"""Features of all tokens in one training pass; a token takes less memory in bf16."""
_MULTIPLE = 32
"""Tokens in a row are a multiple of it where a product's first use of a shape is slow."""
_NARROWED = ("bert", "roberta", "xlm-roberta")
"""Model types whose last layer has the modules that `_narrow_last_layer` replaces."""
_READ_AT_THE_END = ("modernbert-decoder", "ctrl")
"""Decoders whose head is not called `score`."""
_POSITION_TABLES = ("position_embeddings", "wpe", "embed_positions", "positions_embed")
"""Names of the module or buffer that has one row for each position."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """The inputs of the backbone, and the outputs that the head reads."""

    inputs: dict[str, Tensor]
    read_N: Tensor | None
    """Position in the row of the token that is read for each text; None reads the mean.

    If the task scores tokens, the position of the token before each scored one."""
    scores_tokens: bool
    lengths: tuple[int, ...]


@dataclass
class _Given(BackboneOutput):  # type: ignore[misc]
    """Hidden states that are not computed again."""

    router_logits: None = None  # of mixtures of experts


_reading: ContextVar[_Reading] = ContextVar("reading")
_hidden: ContextVar[Tensor | None] = ContextVar("hidden", default=None)
"""Hidden states that the backbone returns instead of computing them."""


def can_unpad(model: nn.Module) -> bool:
    """Return whether a model has one stack of layers and accepts an attention function.

    All others (T5 and BART, DeBERTa, MPNet, BLOOM, Falcon …) get padded texts.
    """
    if not (isinstance(model, PreTrainedModel) and model._supports_attention_backend):
        return False
    config: Any = model.config
    averages_scores = getattr(config, "classifier_pooling", "") == "late"  # EuroBERT
    of_text = config.get_text_config() is config
    return of_text and not config.is_encoder_decoder and not averages_scores


def unpad(model: nn.Module) -> None:
    """Prepare a stock model, in place, for `unpadded_scores`."""
    backbone = _backbone(model)
    share_casts(model)
    keep_gradients(model)
    use_native_functions(model)
    use_native_norms(model)
    model.set_attn_implementation(register())  # type: ignore[operator]
    backbone.forward = types.MethodType(_read_of_each_text, backbone)
    config: Any = model.config
    narrows = config.model_type in _NARROWED and not config.is_decoder
    if narrows and not task_of(model).scores_tokens:
        _narrow_last_layer(backbone)


@contextmanager
def stock_forward(model: nn.Module) -> Iterator[None]:
    """Give a model of `unpad` its stock forward pass on padded texts, to generate with."""
    backbone = _backbone(model)
    ours = vars(backbone).pop("forward", None)
    if ours is None:
        yield
        return
    stock = "sdpa" if getattr(model, "_supports_sdpa", False) else "eager"
    model.set_attn_implementation(stock)  # type: ignore[operator]
    try:
        yield
    finally:
        model.set_attn_implementation(register())  # type: ignore[operator]
        backbone.forward = ours


def part_tokens(model: nn.Module, precision: str) -> int:
    """Return the number of tokens in one training pass; wider models get fewer.

    Smaller matrix products would be slower; larger ones would only need more memory for the
    backward pass. The number doesn't depend on the size of the pack, so that a run has the same
    dropout masks in a pack as alone.
    """
    config: Any = model.config
    tokens = _PART_FEATURES[precision] // int(config.hidden_size)
    return max(_LEAST_TOKENS, min(_MOST_TOKENS, tokens))


def unpadded_scores(model: nn.Module, batch: Batch, device: torch.device, runs: int = 1) -> Tensor:
    """Return the class scores of concatenated texts, (R, N, C), or losses of tokens, (R, S)."""
    wanted = len(batch.lengths)
    if device.type == "cpu" and uses_onednn(torch.float32, torch.bfloat16):
        batch = batch.filled(_MULTIPLE)
    texts, scores_tokens = len(batch.lengths), task_of(model).scores_tokens
    reading = _reading_of(model, batch, device, runs)
    token = _reading.set(reading)
    try:
        with texts_of(batch.lengths, runs):
            if scores_tokens:
                hidden_RSD = _backbone(model)().last_hidden_state
                return _token_losses(model, hidden_RSD, _targets(batch).to(device))
            # The head sees one token for each text of each run.
            one_token_each = torch.zeros(runs * texts, 1, dtype=torch.long, device=device)
            logits: Tensor = model(input_ids=one_token_each).logits
    finally:
        _reading.reset(token)
    return logits.view(runs, texts, -1)[:, :wanted]


def _reading_of(model: nn.Module, batch: Batch, device: torch.device, runs: int) -> _Reading:
    row = {
        "input_ids": batch.ids_T,
        "position_ids": _positions(_backbone(model), batch),
        # Without a mask, decoders would infer the texts' limits from the positions.
        "attention_mask": torch.ones_like(batch.ids_T),
    }
    if _has_types(model):
        row["token_type_ids"] = batch.types_T
    scores_tokens = task_of(model).scores_tokens
    read = batch.scored_S - 1 if scores_tokens else _read_tokens(model, batch)
    return _Reading(
        # A GPU is not waited for.
        inputs={
            name: values.to(device, non_blocking=True).expand(runs, -1)
            for name, values in row.items()
        },
        read_N=None if read is None else read.to(device, non_blocking=True),
        scores_tokens=scores_tokens,
        lengths=batch.lengths,
    )


def _targets(batch: Batch) -> Tensor:
    return batch.ids_T[batch.scored_S]


def _token_losses(model: nn.Module, hidden_RSD: Tensor, targets_S: Tensor) -> Tensor:
    """Return the losses of tokens from the hidden states of the tokens before them, (R, S)."""
    backbone = _backbone(model)
    heads = [module for module in model.children() if backbone not in module.modules()]
    return token_losses(
        hidden_RSD,
        targets_S,
        logits_of=partial(_logits, model),
        words=vocabulary_size(model),
        trained=[p for head in heads for p in head.parameters() if p.requires_grad],
    )


def vocabulary_size(model: nn.Module) -> int:
    """Return the number of words V that a language model gives logits for."""
    config: Any = model.config
    return int(config.get_text_config().vocab_size)


def _logits(model: nn.Module, hidden_RSD: Tensor) -> Tensor:
    """Return the logits of hidden states, (R, S, V), by the model's own code after its backbone."""
    token = _hidden.set(hidden_RSD)
    try:
        logits: Tensor = model(input_ids=torch.zeros_like(hidden_RSD[..., 0]).long()).logits
    finally:
        _hidden.reset(token)
    return logits


def padded_scores(model: nn.Module, batch: Batch, device: torch.device, pad_id: int) -> Tensor:
    """Return a stock model's class scores of texts padded to the longest, (1, N, C).

    If the task scores tokens, return the losses of these tokens, (1, S).
    """
    is_token = padded(torch.ones_like(batch.ids_T), batch.lengths, 0)
    inputs = {
        "input_ids": padded(batch.ids_T, batch.lengths, pad_id).to(device),
        "attention_mask": is_token.to(device),
    }
    if _has_types(model):
        inputs["token_type_ids"] = padded(batch.types_T, batch.lengths, 0).to(device)
    logits: Tensor = model(**inputs).logits
    if not task_of(model).scores_tokens:
        return logits[None]
    logits_SV = logits[is_token.bool()][batch.scored_S - 1]
    targets_S = _targets(batch).to(device)
    return plain_losses(logits_SV, targets_S)[0][None]


def _has_types(model: nn.Module) -> bool:
    config: Any = model.config
    return bool(getattr(config, "type_vocab_size", 0) > 1)


def _backbone(model: nn.Module) -> nn.Module:
    """Return the module that the model's head calls; OPT's language model calls the decoder."""
    backbone = model.get_submodule(str(model.base_model_prefix))
    return getattr(backbone, "decoder", backbone) if task_of(model).scores_tokens else backbone


def _texts_T(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the number of each token's text, and the position of each text's first token."""
    lengths = torch.tensor(batch.lengths)
    return torch.arange(len(lengths)).repeat_interleave(lengths), lengths.cumsum(0) - lengths


def _positions(backbone: nn.Module, batch: Batch) -> Tensor:
    """Return each token's position in its text, as the stock model numbers it."""
    text_T, starts_N = _texts_T(batch)
    padding = _padding_index(backbone)
    if padding is None:
        return torch.arange(len(text_T)) - starts_N[text_T]
    counted_T = (batch.ids_T != padding).long()  # a text may contain the padding token
    until_T = counted_T.cumsum(0)
    before_N = (until_T - counted_T)[starts_N]
    return (until_T - before_N[text_T]) * counted_T + padding


def _padding_index(backbone: nn.Module) -> int | None:
    """Return the padding id from which RoBERTa and related models count; None for others."""
    embeddings = getattr(backbone, "embeddings", None)
    found = getattr(embeddings, "padding_idx", None)
    # In XLM, `embeddings` is the word table, whose padding_idx does not affect positions.
    return None if found is None or isinstance(embeddings, nn.Embedding) else int(found)


def _read_tokens(model: nn.Module, batch: Batch) -> Tensor | None:
    """Return the position of the token that the head reads in each text; None if it reads all."""
    config: Any = model.config
    if getattr(config, "classifier_pooling", "") == "mean":  # ModernBERT
        return None
    text_T, starts_N = _texts_T(batch)
    if not (hasattr(model, "score") or config.model_type in _READ_AT_THE_END):
        return starts_N
    # A decoder is read at its last token that is not padding.
    there_T = batch.ids_T != config.pad_token_id
    place_T = torch.where(there_T, torch.arange(len(text_T)), starts_N[text_T])
    return starts_N.scatter_reduce(0, text_T, place_T, "amax")


def counts_from_padding(model: nn.Module) -> bool:
    """Return whether a model counts positions from its padding id, as RoBERTa does."""
    return _padding_index(_backbone(model)) is not None


def positions_of(model: nn.Module) -> int | None:
    """Return the largest number of tokens that the model has positions for; None if unlimited."""
    padding = _padding_index(_backbone(model))
    found = []
    for name, table in [*model.named_modules(), *model.named_buffers()]:
        if name.rpartition(".")[2] not in _POSITION_TABLES:
            continue
        if isinstance(table, nn.Embedding):  # OPT and BART start at an offset in the table
            first = int(getattr(table, "offset", 0)) if padding is None else padding + 1
            found.append(table.num_embeddings - first)
        elif isinstance(table, Tensor):  # GPT-J's sines
            found.append(table.shape[0])
    return min(found, default=None)


def _read_of_each_text(self: Any, *_: Any, **__: Any) -> BackboneOutput:
    """Run the stock backbone on the row, and return one vector for each text, (R N, 1, D).

    If the task scores tokens, return the vector before each scored token, (R, S, D).
    """
    if (given := _hidden.get()) is not None:
        return _Given(last_hidden_state=given)
    reading = _reading.get()
    hidden = type(self).forward(self, **reading.inputs, use_cache=False).last_hidden_state
    if reading.read_N is None:
        hidden = torch.stack([of.mean(1) for of in hidden.split(list(reading.lengths), 1)], 1)
    elif hidden.shape[1] != len(reading.read_N):  # else the last layer was narrowed
        hidden = hidden.index_select(1, reading.read_N)
    if reading.scores_tokens:
        return BackboneOutput(last_hidden_state=hidden)
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
    """Compute self-attention for the tokens that the head reads: (R, T, D) → (R, N, D)."""

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
