"""Formulas of claims over the counts of published architectures.

    measure: {name: formula, of: "parameters('llama_7b') * (4 + 4 + 8)"}
    measure: {name: formula, of: "adapter('llama_7b', 'mlp', rank)", over: {rank: [8, 16]}}

The second formula leaves a setting open, so its value is a range. Memory is in bytes, without
activations and temporary buffers, unless the claim says otherwise.
"""

import ast
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from itertools import product
from typing import Any

from lowrank_study.claims.measures.architectures import architecture_of
from lowrank_study.claims.measures.outcome import (
    Interval,
    Measured,
    Outcome,
    exactly,
    measure,
    ranging,
)  # fmt: skip
from lowrank_study.errors import InputError

_OPERATORS: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def parameters(architecture: str) -> int:
    """Count all parameters of a model, tied parameters once."""
    return architecture_of(architecture).parameters()


def weights(architecture: str, target: str) -> int:
    """Count the weights of the linear maps of a target."""
    return sum(width_in * width_out for width_in, width_out in _shapes(architecture, target))


def adapter(architecture: str, target: str, rank: int) -> int:
    """Count the parameters of a LoRA adapter, rank · (in + out) a map; a target may be `a+b`."""
    return sum(rank * (inputs + outputs) for inputs, outputs in _shapes(architecture, target))


def layers(architecture: str) -> int:
    """Count the layers of a model."""
    return architecture_of(architecture).layers


def aspect(architecture: str, role: str) -> float:
    """Return out / in of a role's map in the first layer."""
    width_in, width_out = architecture_of(architecture).shapes(role)[0]
    return width_out / width_in


def nf4_bits(block: int, second_block: int = 0) -> float:
    """Return the bits of a weight in NF4 with its share of the constants.

    4 + 32 / block, or 4 + 8 / block + 32 / (block · second_block) with double quantisation
    (Dettmers et al. 2023, section 3).
    """
    return 4 + (8 / block + 32 / (block * second_block) if second_block else 32 / block)


def step_flops(architecture: str, target: str, rank: int) -> int:
    """Count the FLOPs per token of a LoRA step in the linear maps: 4 N + 6 n.

    A weight takes 2 forward and 2 for the gradient of its input. A trained weight takes 2 more for
    its own gradient, so a full step takes 6 N.
    """
    return 4 * weights(architecture, "all_linear") + 6 * adapter(architecture, target, rank)


def days(first: str, second: str) -> int:
    """Count the days from one ISO date to another."""
    return (date.fromisoformat(second) - date.fromisoformat(first)).days


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (parameters, weights, adapter, layers, aspect, nf4_bits, step_flops, days)
} | {"ceil": math.ceil}


def _shapes(architecture: str, target: str) -> list[tuple[int, int]]:
    return architecture_of(architecture).shapes(*target.split("+"))


@measure
def formula(
    of: str | Sequence[str] | Mapping[str, str],
    how: str = "",
    over: Mapping[str, Sequence[Any]] | None = None,
) -> Outcome:
    """Compute a formula, or a list or mapping (label → formula) of them.

    Args:
        of: Numbers, strings, + - * /, the functions of this module, and the names in `over`.
        how: The meaning of the formula, for the ledger.
        over: Settings that the claim leaves open, with their values.
    """
    found = [of] if isinstance(of, str) else list(of.values() if isinstance(of, Mapping) else of)
    text = "; ".join(([how] if how else []) + [", ".join(found)])
    if over:
        text += "".join(f"; {name}: {', '.join(map(str, values))}" for name, values in over.items())
        settings = [dict(zip(over, values, strict=True)) for values in product(*over.values())]
        return ranging([evaluate(found[0], setting) for setting in settings], text)
    labels = list(of) if isinstance(of, Mapping) else [""] * len(found)
    values = [evaluate(each, {}) for each in found]
    pairs = zip(values, labels, strict=True)
    return Measured(values=tuple(exactly(value, label) for value, label in pairs), how=text)


@measure
def published_ratio(numerator: float, denominator: float, rounding: Sequence[float]) -> Outcome:
    """Compute the ratio of two published numbers, each ± its rounding or published spread."""
    above, below = rounding
    low = (numerator - above) / (denominator + below)
    high = (numerator + above) / (denominator - below)
    found = Interval(value=numerator / denominator, low=low, high=high, label="")
    how = f"{numerator:g} ± {above:g} over {denominator:g} ± {below:g}"
    return Measured(values=(found,), how=how)


def evaluate(text: str, names: Mapping[str, Any]) -> float:
    """Return the value of a formula."""

    def value(node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=int() | float() | str() as constant):
                return constant
            case ast.Name(id=name) if name in names:
                return names[name]
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -value(operand)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](value(left), value(right))
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
                return _FUNCTIONS[name](*map(value, args))
        raise InputError(
            f"formula {text!r}: {ast.unparse(node)!r} is not allowed; valid are numbers, strings, "
            f"+ - * /, {', '.join([*_FUNCTIONS, *names])}"
        )

    try:
        return float(value(ast.parse(text, mode="eval").body))
    except (SyntaxError, TypeError, ZeroDivisionError) as error:
        raise InputError(f"formula {text!r}: {error}") from error
