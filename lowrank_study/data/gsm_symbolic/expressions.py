"""Evaluate the expressions of templates without running code.

    >>> evaluated(parsed("n - 2 * k > 0"), {"n": 9, "k": 4}, {})
    True

Only the syntax in this module is known: constants, names, arithmetic, comparisons, `and`, `or`,
`not`, `a if b else c`, lists, tuples, and calls of functions that the caller gives. There are no
attributes, subscripts, loops, comprehensions or formatted strings, so nothing but these functions
can be reached. The length of an expression, its depth, its numbers and its texts are bounded, so
that every evaluation ends soon.
"""

import ast
import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from lowrank_study.data.gsm_symbolic.numbers import Real, bounded, is_number, power
from lowrank_study.errors import InputError

Names = Mapping[str, Any]
Functions = Mapping[str, Callable[..., Any]]
Compute = Callable[[Names, Functions], Any]

LONGEST_SOURCE = 5_000
MOST_NODES = 1_000
DEEPEST = 40
LONGEST_TEXT = 5_000
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: lambda a, b: Fraction(a) / b,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: power,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Expression:
    """An expression that is safe to evaluate."""

    source: str
    names: frozenset[str]
    """The names that it reads, functions included."""
    compute: Compute


@functools.lru_cache(maxsize=20_000)
def parsed(source: str) -> Expression:
    """Return an expression that is safe to evaluate.

    Raises:
        InputError: The text is too long, is no expression, or uses anything but the known syntax.
    """
    shown = source.strip()[:60]
    if len(source) > LONGEST_SOURCE:
        raise InputError(f"expression {shown!r}… has more than {LONGEST_SOURCE:,} characters")
    try:
        tree = ast.parse(source.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"expression {shown!r} is not valid: {_first_line(error)}") from error
    nodes = list(ast.walk(tree))
    if len(nodes) > MOST_NODES or _depth(tree) > DEEPEST:
        raise InputError(f"expression {shown!r}… is too large or too deeply nested")
    try:
        compute = _compiled(tree)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"expression {shown!r}: {error}") from error
    names = frozenset(node.id for node in nodes if isinstance(node, ast.Name))
    return Expression(source=source.strip(), names=names, compute=compute)


def evaluated(expression: Expression, names: Names, functions: Functions) -> Any:
    """Return the value of an expression: a number, text, truth value, list or tuple.

    Raises:
        InputError: A name is unknown, types don't fit, or a value is too large.
        ZeroDivisionError: A number is divided by zero.
    """
    try:
        return expression.compute(names, functions)
    except (TypeError, ValueError, OverflowError, IndexError) as error:
        raise InputError(f"expression {expression.source[:60]!r}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _depth(tree: ast.AST) -> int:
    """Return the number of levels, without recursion."""
    levels, level = 0, [tree]
    while level:
        levels, level = levels + 1, [n for each in level for n in ast.iter_child_nodes(each)]
    return levels


def _compiled(node: ast.expr) -> Compute:
    """Return a function that computes a node; refuse a node that isn't known."""
    match node:
        case ast.Constant(value=value):
            return _constant(value)
        case ast.Name(id=name):
            return lambda names, _: _found(names, name, "name")
        case ast.List(elts=parts):
            computes = list(map(_compiled, parts))
            return lambda names, functions: [each(names, functions) for each in computes]
        case ast.Tuple(elts=parts):
            computes = list(map(_compiled, parts))
            return lambda names, functions: tuple(each(names, functions) for each in computes)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            return _binary(op, _compiled(left), _compiled(right))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            negated = _compiled(operand)
            return lambda names, functions: not negated(names, functions)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _binary(ast.Sub(), _constant(0), _compiled(operand))
        case ast.Compare(left=left, ops=ops, comparators=others):
            return _comparison(ops, [_compiled(each) for each in (left, *others)])
        case ast.BoolOp(op=op, values=parts):
            computes, combine = list(map(_compiled, parts)), all if isinstance(op, ast.And) else any
            return lambda names, functions: combine(each(names, functions) for each in computes)
        case ast.IfExp(test=test, body=body, orelse=other):
            choice, yes, no = _compiled(test), _compiled(body), _compiled(other)
            return lambda names, functions: (yes if choice(names, functions) else no)(
                names, functions
            )
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
            computes = list(map(_compiled, arguments))
            return lambda names, functions: _found(functions, name, "function")(
                *[each(names, functions) for each in computes]
            )
    raise TypeError(f"{type(node).__name__} is not allowed here")


def _found(known: Mapping[str, Any], name: str, kind: str) -> Any:
    if name not in known:
        raise ValueError(f"the {kind} {name!r} is unknown")
    return known[name]


def _constant(value: object) -> Compute:
    if isinstance(value, bool | str):
        return lambda *_: value
    if isinstance(value, int):
        number = bounded(value)
        return lambda *_: number
    if isinstance(value, float):
        real = bounded(Real(repr(value)))
        return lambda *_: real
    raise TypeError(f"the constant {value!r} is not allowed")


def _binary(op: ast.operator, left: Compute, right: Compute) -> Compute:
    """Return a function that applies an operator to two numbers, or `+` to two texts."""
    apply = _ARITHMETIC[type(op)]
    name, is_division = type(op).__name__, isinstance(op, ast.Div)

    def compute(names: Names, functions: Functions) -> Any:
        one, other = left(names, functions), right(names, functions)
        if isinstance(op, ast.Add) and isinstance(one, str) and isinstance(other, str):
            if len(one) + len(other) > LONGEST_TEXT:
                raise ValueError(f"a text has more than {LONGEST_TEXT:,} characters")
            return one + other
        if not (is_number(one) and is_number(other)):
            kinds = f"{type(one).__name__} and {type(other).__name__}"
            raise TypeError(f"{name} needs two numbers, not {kinds}")
        result = bounded(apply(one, other))
        if isinstance(one, int) and isinstance(other, int):
            return Real(result) if is_division else result
        is_real = isinstance(one, Real) or isinstance(other, Real)
        return Real(result) if is_real else Fraction(result)

    return compute


def _comparison(ops: list[ast.cmpop], parts: list[Compute]) -> Compute:
    """Return a function that compares its parts; only numbers have an order."""
    if unknown := [type(op).__name__ for op in ops if type(op) not in _COMPARISONS]:
        raise TypeError(f"{unknown[0]} is not allowed here")

    def compute(names: Names, functions: Functions) -> bool:
        left = parts[0](names, functions)
        for op, part in zip(ops, parts[1:], strict=True):
            right = part(names, functions)
            is_order = not isinstance(op, ast.Eq | ast.NotEq)
            if is_order and not (is_number(left) and is_number(right)):
                raise TypeError(f"{type(op).__name__} needs two numbers")
            if not _COMPARISONS[type(op)](left, right):
                return False
            left = right
        return True

    return compute
