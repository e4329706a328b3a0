"""Mutations of one module: small changes of its syntax tree, each of which a test should notice.

The operators exchange arithmetic, comparison and boolean operators and a few opposite functions,
change numbers by 1, negate conditions, return None, and remove statements. What no test can observe
is no mutation: texts (log and error messages, docstrings, f-strings), type hints, decorators, and
the constants that a target names as affecting speed only, with the comparisons that use them.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

ARITHMETIC: dict[type[ast.operator], tuple[str, str, type[ast.operator]]] = {
    ast.Add: ("+", "-", ast.Sub),
    ast.Sub: ("-", "+", ast.Add),
    ast.Mult: ("*", "/", ast.Div),
    ast.Div: ("/", "*", ast.Mult),
    ast.FloorDiv: ("//", "/", ast.Div),
    ast.Mod: ("%", "*", ast.Mult),
    ast.Pow: ("**", "*", ast.Mult),
    ast.LShift: ("<<", ">>", ast.RShift),
    ast.RShift: (">>", "<<", ast.LShift),
    ast.BitAnd: ("&", "|", ast.BitOr),
    ast.BitOr: ("|", "&", ast.BitAnd),
    ast.BitXor: ("^", "&", ast.BitAnd),
}
COMPARISON: dict[type[ast.cmpop], tuple[str, str, type[ast.cmpop]]] = {
    ast.Lt: ("<", "<=", ast.LtE),
    ast.LtE: ("<=", "<", ast.Lt),
    ast.Gt: (">", ">=", ast.GtE),
    ast.GtE: (">=", ">", ast.Gt),
    ast.Eq: ("==", "!=", ast.NotEq),
    ast.NotEq: ("!=", "==", ast.Eq),
    ast.Is: ("is", "is not", ast.IsNot),
    ast.IsNot: ("is not", "is", ast.Is),
    ast.In: ("in", "not in", ast.NotIn),
    ast.NotIn: ("not in", "in", ast.In),
}
OPPOSITES = {"min": "max", "any": "all", "minimum": "maximum", "argmin": "argmax"}
OPPOSITES |= {second: first for first, second in OPPOSITES.items()} | {"ones": "zeros"}
LOGGERS = ("log", "logger", "warnings")
CHECKS = ("strict",)  # arguments that only find errors of ours
FIELDS = ("field", "dataclass_field", "TypeVar", "getLogger")

Build = Callable[[Any], ast.AST]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One change of a module.

    Attributes:
        line: number of the first line changed, from 1.
        before, after: the lines concerned, without indentation, joined by spaces.
        position: of the node in the order of `ast.walk`.
        build: makes the new node of the old one.
    """

    line: int
    before: str
    after: str
    position: int
    build: Build

    def tree(self, source: str) -> ast.Module:
        """The mutated module."""
        tree = ast.parse(source)
        target = list(ast.walk(tree))[self.position]
        swapped = _Swap(target, self.build(target)).visit(tree)
        assert isinstance(swapped, ast.Module)
        return ast.fix_missing_locations(swapped)


class _Swap(ast.NodeTransformer):
    def __init__(self, target: ast.AST, new: ast.AST) -> None:
        self._target, self._new = target, new

    def visit(self, node: ast.AST) -> ast.AST:
        if node is self._target:
            return self._new
        self.generic_visit(node)
        return node


def mutants(source: str, speed_only: Collection[str] = ()) -> list[Mutant]:
    """All mutants of a module, in the order of its lines.

    Args:
        speed_only: names of constants that affect speed only.
    """
    tree = ast.parse(source)
    unobservable = {id(node) for node in _unobservable(tree, speed_only)}
    parents = {id(child): node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    lines = _without_comments(source)
    made: dict[tuple[int, str, str], Mutant] = {}
    for position, node in enumerate(ast.walk(tree)):
        if id(node) in unobservable:
            continue
        for begin, end, text, build in _changes(node, parents.get(id(node)), lines):
            before = "".join(lines[begin[0] - 1 : end[0]])
            tail = _bytes(lines[end[0] - 1])[end[1] :].decode()
            after = _bytes(lines[begin[0] - 1])[: begin[1]].decode() + text + tail
            mutant = Mutant(
                line=begin[0],
                before=" ".join(before.split()),
                after=" ".join(after.split()),
                position=position,
                build=build,
            )
            made.setdefault((mutant.line, mutant.before, mutant.after), mutant)
    return sorted(made.values(), key=lambda mutant: mutant.line)


Place = tuple[int, int]
Change = tuple[Place, Place, str, Build]


def _without_comments(source: str) -> list[str]:
    lines = source.splitlines(keepends=True)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column].rstrip() + "\n"
    return lines


def _bytes(line: str) -> bytes:
    return line.encode()  # columns of the syntax tree count bytes


def _begin(node: Any) -> Place:
    return node.lineno, node.col_offset


def _end(node: Any) -> Place:
    return node.end_lineno, node.end_col_offset


def _changes(node: ast.AST, parent: ast.AST | None, lines: list[str]) -> Iterator[Change]:
    """The changes of one node: where the text changes, the new text, and the new node."""
    if isinstance(node, ast.BinOp):
        old, new, op = ARITHMETIC.get(type(node.op), ("", "", ast.Add))
        if old:
            yield (*_gap(node.left, node.right, old, new, lines), _with(op=op()))
    elif isinstance(node, ast.AugAssign):
        old, new, op = ARITHMETIC.get(type(node.op), ("", "", ast.Add))
        if old:
            yield (*_gap(node.target, node.value, old, new, lines), _with(op=op()))
    elif isinstance(node, ast.Compare):
        terms = [node.left, *node.comparators]
        for number, comparison in enumerate(node.ops):
            old, new, other = COMPARISON[type(comparison)]
            ops = [*node.ops[:number], other(), *node.ops[number + 1 :]]
            yield (*_gap(terms[number], terms[number + 1], old, new, lines), _with(ops=ops))
    elif isinstance(node, ast.BoolOp):
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for number in range(len(node.values) - 1):
            build = _regrouped(number)
            yield (*_gap(node.values[number], node.values[number + 1], old, new, lines), build)
    elif isinstance(node, ast.UnaryOp):
        if isinstance(node.op, (ast.Not, ast.USub, ast.Invert)):
            yield _begin(node), _begin(node.operand), "", lambda node: node.operand
    elif isinstance(node, ast.Constant):
        for value in _other_values(node.value):
            yield _begin(node), _end(node), repr(value), _with(value=value)
    elif isinstance(node, (ast.Name, ast.Attribute)):
        name = node.id if isinstance(node, ast.Name) else node.attr
        if name in OPPOSITES and isinstance(parent, ast.Call) and parent.func is node:
            begin = (_end(node)[0], _end(node)[1] - len(name))
            changed = {"id" if isinstance(node, ast.Name) else "attr": OPPOSITES[name]}
            yield begin, _end(node), OPPOSITES[name], _with(**changed)
    elif isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield _begin(node), _end(node), "return None", _with(value=ast.Constant(None))
    if isinstance(node, (ast.If, ast.While, ast.IfExp)):
        yield _begin(node.test), _end(node.test), _negated(node.test), _negating
    if isinstance(node, ast.comprehension):
        for number, condition in enumerate(node.ifs):
            build = _negating_condition(number)
            yield _begin(condition), _end(condition), _negated(condition), build
    if _is_removable(node):
        yield _begin(node), _end(node), "pass", lambda node: ast.Pass()


def _gap(
    left: ast.AST, right: ast.AST, old: str, new: str, lines: list[str]
) -> tuple[Place, Place, str]:
    """The text between two operands, with another operator."""
    begin, end = _end(left), _begin(right)
    if begin[0] == end[0]:
        text = _bytes(lines[begin[0] - 1])[begin[1] : end[1]].decode()
    else:
        first = _bytes(lines[begin[0] - 1])[begin[1] :].decode()
        last = _bytes(lines[end[0] - 1])[: end[1]].decode()
        text = first + "".join(lines[begin[0] : end[0] - 1]) + last
    return begin, end, text.replace(old, new, 1)


def _with(**values: Any) -> Build:
    def build(node: ast.AST) -> ast.AST:
        for name, value in values.items():
            setattr(node, name, value)
        return node

    return build


def _regrouped(number: int) -> Build:
    """Exchange one operator of `a and b and c`, by the precedence of the new text."""

    def build(node: Any) -> ast.AST:
        before, after = node.values[: number + 1], node.values[number + 1 :]

        def joined(op: type[ast.boolop], values: list[ast.expr]) -> ast.expr:
            return values[0] if len(values) == 1 else ast.BoolOp(op(), values)

        if isinstance(node.op, ast.And):
            return ast.BoolOp(ast.Or(), [joined(ast.And, before), joined(ast.And, after)])
        pair = ast.BoolOp(ast.And(), [before[-1], after[0]])
        return joined(ast.Or, [*before[:-1], pair, *after[1:]])

    return build


def _negated(test: ast.expr) -> str:
    return f"not ({ast.unparse(test)})"


def _negating(node: Any) -> ast.AST:
    node.test = ast.UnaryOp(ast.Not(), node.test)
    return node  # type: ignore[no-any-return]


def _negating_condition(number: int) -> Build:
    def build(node: Any) -> ast.AST:
        node.ifs[number] = ast.UnaryOp(ast.Not(), node.ifs[number])
        return node  # type: ignore[no-any-return]

    return build


def _other_values(value: object) -> list[object]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, (int, float)):
        return [value + 1, value - 1]
    return []


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_removable(node: ast.AST) -> bool:
    """Statements without which the module still makes sense."""
    if isinstance(node, ast.Expr):
        return not isinstance(node.value, (ast.Constant, ast.Yield, ast.Await))
    if isinstance(node, ast.Assign):
        return all(isinstance(target, (ast.Attribute, ast.Subscript)) for target in node.targets)
    return isinstance(
        node, (ast.AugAssign, ast.Raise, ast.Assert, ast.Continue, ast.Break, ast.Delete)
    )


def _unobservable(tree: ast.Module, speed_only: Collection[str]) -> Iterator[ast.AST]:
    """Nodes that are not changed."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield from ast.walk(node)
        elif isinstance(node, ast.Raise):
            yield from list(ast.walk(node))[1:]  # the statement itself may be removed
        elif isinstance(node, ast.Assert):
            if _narrows(node.test):
                yield from ast.walk(node)
            elif node.msg is not None:
                yield from ast.walk(node.msg)
        elif isinstance(node, ast.Call) and _called(node) in (*LOGGERS, *FIELDS):
            yield from ast.walk(node)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            if _called(node.value) in LOGGERS:
                yield node
        elif isinstance(node, (ast.Compare, ast.Assign)) and _names(node) & set(speed_only):
            yield from ast.walk(node)
        for part in _declarations(node):
            yield from ast.walk(part)
    for statement in tree.body:  # aliases of types: `Scalar = str | int`
        value = statement.value if isinstance(statement, ast.Assign) else None
        if isinstance(value, ast.BinOp) and isinstance(value.op, ast.BitOr):
            yield from ast.walk(statement)


def _declarations(node: ast.AST) -> Iterator[ast.AST]:
    """Types, decorators, and arguments that only check."""
    if isinstance(node, ast.keyword) and node.arg in CHECKS:
        yield node
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield from node.decorator_list
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.returns is not None:
        yield node.returns
    if isinstance(node, (ast.arg, ast.AnnAssign)) and node.annotation is not None:
        yield node.annotation


def _narrows(test: ast.expr) -> bool:
    """`assert isinstance(..)` and `assert .. is not None` inform the type checker."""
    if isinstance(test, ast.Compare):
        return isinstance(test.ops[0], ast.IsNot) and _is_none(test.comparators[0])
    return isinstance(test, ast.Call) and _called(test) == "isinstance"


def _called(node: ast.Call) -> str:
    """The first name of what is called: `log` of `log.warning(..)`."""
    function = node.func
    if isinstance(function, ast.Attribute) and function.attr in FIELDS:
        return function.attr
    while isinstance(function, ast.Attribute):
        function = function.value
    return function.id if isinstance(function, ast.Name) else ""


def _names(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
