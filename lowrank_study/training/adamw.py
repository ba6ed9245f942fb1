"""AdamW that clips, decays and updates in one pass over memory, by `native/adamw.c`.

    >>> optimizer = native_adamw(groups, betas=(0.9, 0.999), eps=1e-8) or torch.optim.AdamW(groups)
    >>> norm = clip_gradients(optimizer, parameters, largest=1.0)
    >>> optimizer.step()

Its numbers are those of `torch.optim.AdamW`, up to rounding. Rows of an embedding that no text has
contained so far only decay.
"""

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from lowrank_study import native


class _Update(ctypes.Structure):
    """`struct update` of `native/adamw.c`."""

    _fields_ = (
        *((n, ctypes.c_void_p) for n in ("weight", "moment", "square", "gradient", "seen")),
        *((n, ctypes.c_int64) for n in ("rows", "width")),
        *((n, ctypes.c_double) for n in ("scale", "kept", "beta1", "beta2")),
        *((n, ctypes.c_double) for n in ("step", "correction", "epsilon")),
    )


def native_adamw(
    groups: Sequence[dict[str, Any]], *, betas: tuple[float, float], eps: float
) -> optim.Optimizer | None:
    """Return the optimizer, or None if there is no native code for the parameters."""
    parameters = [parameter for group in groups for parameter in group["params"]]
    is_covered = all(
        p.is_cpu and p.dtype == torch.float32 and p.is_contiguous() for p in parameters
    )
    code = native.library("adamw.c") if is_covered else None
    return None if code is None else _AdamW(groups, {"betas": betas, "eps": eps}, code)


def clip_gradients(
    optimizer: optim.Optimizer, parameters: Sequence[nn.Parameter], largest: float
) -> Tensor:
    """Scale the gradients down to the largest norm, at once or in the step; return their norm."""
    norm = get_total_norm([_gradient(p) for p in parameters if p.grad is not None])
    if isinstance(optimizer, _AdamW):
        optimizer.scale = min(1.0, largest / (float(norm) + 1e-6))
    else:
        clip_grads_with_norm_(parameters, largest, norm)
    return norm


def _gradient(parameter: nn.Parameter) -> Tensor:
    """Return a gradient without the rows of an embedding that are known to be zero."""
    assert parameter.grad is not None
    rows = _rows(parameter)
    return parameter.grad if rows is None else parameter.grad[rows]


def _rows(parameter: nn.Parameter) -> Tensor | None:
    """Return the rows of an embedding that have a gradient; None if all may have one."""
    rows: list[Tensor] = getattr(parameter, "rows_with_gradient", [])
    return torch.unique(torch.cat(rows)) if rows else None


class _AdamW(optim.Optimizer):
    """AdamW of contiguous fp32 parameters on the processor."""

    def __init__(
        self, groups: Sequence[dict[str, Any]], defaults: dict[str, Any], code: ctypes.CDLL
    ) -> None:
        super().__init__(groups, defaults)
        self.scale = 1.0
        """Factor of the gradients in the next step."""
        self._code = code

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the parameters that have a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        self.scale = 1.0

    def _update(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        width = parameter.shape[-1] if parameter.ndim > 1 else 1
        if not state:
            state["step"] = 0
            state["seen"] = torch.zeros(parameter.numel() // width, dtype=torch.uint8)
            state |= {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        assert parameter.grad is not None
        state["step"] += 1
        gradient, rows = parameter.grad.contiguous(), _rows(parameter)
        # Once any row may have had a gradient, it stays so.
        if rows is None:
            state["seen"] = None
        seen = None if state["seen"] is None else state["seen"].index_fill_(0, rows, 1)
        beta1, beta2 = group["betas"]
        work = _Update(
            weight=parameter.data_ptr(),
            moment=state["exp_avg"].data_ptr(),
            square=state["exp_avg_sq"].data_ptr(),
            gradient=gradient.data_ptr(),
            seen=None if seen is None else seen.data_ptr(),
            rows=parameter.numel() // width,
            width=width,
            scale=self.scale,
            kept=1.0 - group["lr"] * group["weight_decay"],
            beta1=beta1,
            beta2=beta2,
            step=group["lr"] / (1.0 - beta1 ** state["step"]),
            correction=1.0 / math.sqrt(1.0 - beta2 ** state["step"]),
            epsilon=group["eps"],
        )
        self._code.update(ctypes.byref(work), torch.get_num_threads())
