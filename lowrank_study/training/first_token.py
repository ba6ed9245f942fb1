"""The last layer computes only what the classifier reads: the first token.

BERT's and RoBERTa's heads read the last layer's output at the first token and nothing else of
it. Its query, attention, output map and feed-forward part are therefore only needed there (its
keys and values everywhere). The scores and the gradients stay the same, up to the rounding of
sums in another order; one layer in six then costs a sixth of itself.

    >>> read_first_token_only(model)      # in place; returns whether the model is one of these
    True
"""

import types
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

_MODEL_TYPES = ("bert", "roberta", "xlm-roberta")


def read_first_token_only(model: nn.Module) -> bool:
    """Narrow the last layer of a BERT-like classifier; leave every other model as it is."""
    config: Any = model.config
    if config.model_type not in _MODEL_TYPES or config.is_decoder:
        return False
    backbone = getattr(model, str(model.base_model_prefix))
    attention = backbone.encoder.layer[-1].attention
    attention.self.forward = types.MethodType(_attend_from_first, attention.self)
    attention.output.register_forward_pre_hook(_keep_first_of_residual)
    return True


def _attend_from_first(
    self: Any, hidden_NTD: Tensor, attention_mask: Tensor | None = None, **_: Any
) -> tuple[Tensor, None]:
    """Self-attention with the first token's query alone: (N, T, D) → (N, 1, D)."""

    def heads(x_NTD: Tensor) -> Tensor:
        N, T, _ = x_NTD.shape
        return x_NTD.view(N, T, -1, self.attention_head_size).transpose(1, 2)

    context = functional.scaled_dot_product_attention(
        heads(self.query(hidden_NTD[:, :1])),
        heads(self.key(hidden_NTD)),
        heads(self.value(hidden_NTD)),
        attn_mask=None if attention_mask is None else attention_mask[..., :1, :],
        dropout_p=self.dropout.p if self.training else 0.0,
        scale=self.scaling,
    )
    return context.transpose(1, 2).flatten(-2), None


def _keep_first_of_residual(_: nn.Module, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    attended_N1D, residual_NTD = inputs
    return attended_N1D, residual_NTD[:, :1]
