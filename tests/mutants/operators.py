"""Small mistakes, made one at a time in a module's syntax tree.

A mistake is a single replaced node: another comparison, an operand left out, a constant one off, a clamp or
a keyword forgotten, a statement that is not there. What is said to people (messages of exceptions, log
lines, docstrings), types, decorators and positions in shapes are left alone: tests are not to hold every
word, and what stops at once with a TypeError says nothing about them.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
}
NAMES = {"min": "max", "max": "min", "sum": "mean", "mean": "sum", "any": "all", "all": "any"}
NAMES |= {"minimum": "maximum", "maximum": "minimum", "floor": "ceil", "ceil": "floor"}
NAMES |= {"amax": "amin", "amin": "amax"}
CONTEXTS = {"no_grad", "autocast", "stepping"}  # left out, their body stays
UNSPOKEN = {"log", "warnings"}  # objects whose calls speak to people
MODULES = {"np", "torch", "math", "F", "itertools"}
# Give back something of the kind they were given.
PRESERVING = {"clamp", "clip", "detach", "abs", "square", "sqrt", "round", "sorted", "sort", "floor", "ceil"}
PRESERVING |= {"float", "double", "copy", "clone", "contiguous", "cumsum", "cumprod", "log", "exp", "sigmoid"}
PRESERVING |= {"minimum", "maximum", "_clip", "reversed", "sign", "flip", "accumulate", "resolve"}
# Keywords that ask for an error or for speed, or are axes.
IDLE_KEYWORDS = {
    "strict",
    "maxsize",
    "non_blocking",
    "dim",
    "axis",
    "device",
    "encoding",
    "kw_only",
    "frozen",
    "eq",
}


@dataclass(frozen=True)
class Mutant:
    """One mistake in one module. ``number`` makes it again from the same source."""

    path: str
    line: int
    last_line: int  # of the statement that it is in, or of the part of it that stands before a body
    function: str  # qualified name, empty at the module's own level
    before: str
    after: str
    number: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.function or '(module)'}: {self.before} -> {self.after}"


def mutants_of(path: str, source: str) -> list[Mutant]:
    """All mistakes this module can make in ``source``."""
    mutator = _Mutator(path)
    mutator.visit(ast.parse(source))
    return mutator.found


def compiled(mutant: Mutant, source: str) -> CodeType:
    """The module's code with the mistake in it."""
    tree = _Mutator(mutant.path, mutant.number).visit(ast.parse(source))
    code: CodeType = compile(ast.fix_missing_locations(tree), str(Path(mutant.path).resolve()), "exec")
    return code


class _Mutator(ast.NodeTransformer):
    """Counts the alternatives of all nodes, in a fixed order, and puts one of them in place."""

    def __init__(self, path: str, wanted: int | None = None) -> None:
        self.found: list[Mutant] = []
        self._path = path
        self._wanted = wanted
        self._inside: list[str] = []
        self._last_line = 0

    def visit(self, node: ast.AST) -> Any:
        if _is_spoken(node):
            return node
        if isinstance(node, ast.stmt):
            self._last_line = _last_line_of_its_own(node)
        for after in alternatives(node):
            self.found.append(self._mutant(node, after))
            if self.found[-1].number == self._wanted:
                return ast.copy_location(after, node)
        named = isinstance(node, (ast.FunctionDef, ast.ClassDef))
        if named:
            self._inside.append(node.name)  # type: ignore[attr-defined]
        self._visit_children(node)
        if named:
            self._inside.pop()
        return node

    def _visit_children(self, node: ast.AST) -> None:
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "slice", "decorator_list", "bases", "exc"):
                continue
            if isinstance(value, list):
                value[:] = [self.visit(item) if isinstance(item, ast.AST) else item for item in value]
            elif isinstance(value, ast.AST):
                setattr(node, name, self.visit(value))

    def _mutant(self, before: ast.AST, after: ast.AST) -> Mutant:
        return Mutant(
            self._path,
            getattr(before, "lineno", self._last_line),
            self._last_line,
            ".".join(self._inside),
            _text(before),
            _text(after),
            len(self.found),
        )


def _last_line_of_its_own(node: ast.stmt) -> int:
    body = getattr(node, "body", None)
    return max(node.lineno, body[0].lineno - 1) if body else node.end_lineno or node.lineno


def _text(node: ast.AST) -> str:
    """One line of source; of a statement with a body, the line that opens it."""
    text = ast.unparse(ast.fix_missing_locations(copy.deepcopy(node))).splitlines()
    return text[0] if len(text) == 1 or not hasattr(node, "body") else f"{text[0]} ..."


def _is_spoken(node: ast.AST) -> bool:
    """Invariants, what is said when things go wrong, and what asks for nothing but that."""
    if isinstance(node, (ast.Assert, ast.JoinedStr, ast.Import, ast.ImportFrom)):
        return True
    if isinstance(node, ast.keyword):
        return node.arg in IDLE_KEYWORDS
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        root = node.value.func
        while isinstance(root, ast.Attribute):
            root = root.value
        return isinstance(root, ast.Name) and root.id in UNSPOKEN
    return False


def alternatives(node: ast.AST) -> Iterator[ast.AST]:
    """What could stand in a node's place."""
    for kind, make in OPERATORS:
        if isinstance(node, kind):
            yield from make(copy.deepcopy(node))


def _comparison(node: ast.Compare) -> Iterator[ast.AST]:
    for number, operator in enumerate(node.ops):
        if type(operator) in COMPARISONS:
            other = copy.deepcopy(node)
            other.ops[number] = COMPARISONS[type(operator)]()
            yield other


def _arithmetic(node: ast.BinOp) -> Iterator[ast.AST]:
    if isinstance(node.left, ast.Constant) and isinstance(node.left.value, (str, bytes)):
        return
    if type(node.op) in ARITHMETIC:
        yield ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right)
    yield node.left
    if isinstance(node.op, (ast.Mult, ast.Add, ast.MatMult, ast.BitAnd, ast.BitOr)):
        yield node.right


def _augmented(node: ast.AugAssign) -> Iterator[ast.AST]:
    if type(node.op) in ARITHMETIC:
        yield ast.AugAssign(node.target, ARITHMETIC[type(node.op)](), node.value)
    yield ast.Assign([node.target], node.value)


def _unary(node: ast.UnaryOp) -> Iterator[ast.AST]:
    yield node.operand


def _both_or_either(node: ast.BoolOp) -> Iterator[ast.AST]:
    yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    for number in range(len(node.values)):
        rest = node.values[:number] + node.values[number + 1 :]
        yield rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)


def _constant(node: ast.Constant) -> Iterator[ast.AST]:
    value = node.value
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, int):
        yield ast.Constant(value + 1)
    elif isinstance(value, float):
        yield ast.Constant(value * 1.01 if value else 1.0)


def _condition(node: ast.If | ast.While | ast.IfExp) -> Iterator[ast.AST]:
    if isinstance(node.test, (ast.Compare, ast.UnaryOp)):
        return  # turned round by their own operators
    node.test = ast.UnaryOp(ast.Not(), node.test)
    yield node


def _comprehension(node: ast.comprehension) -> Iterator[ast.AST]:
    for number in range(len(node.ifs)):
        yield ast.comprehension(
            node.target, node.iter, node.ifs[:number] + node.ifs[number + 1 :], node.is_async
        )


def _call(node: ast.Call) -> Iterator[ast.AST]:
    """Another function; its argument or its object instead; a keyword left out."""
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name in NAMES and not (isinstance(function, ast.Name) and NAMES[name] == "mean"):
        other = copy.deepcopy(function)
        setattr(other, "attr" if isinstance(function, ast.Attribute) else "id", NAMES[name])
        yield ast.Call(other, node.args, node.keywords)
    if name in PRESERVING and not (isinstance(function, ast.Name) and name == "float"):
        of_module = isinstance(function, ast.Attribute) and ast.unparse(function.value) in MODULES
        if isinstance(function, ast.Attribute) and not of_module:
            yield function.value
        elif node.args:
            yield node.args[0]
    for number, keyword in enumerate(node.keywords):
        if keyword.arg is not None and keyword.arg not in IDLE_KEYWORDS and not name[:1].isupper():
            rest = node.keywords[:number] + node.keywords[number + 1 :]
            yield ast.Call(function, node.args, rest)


def _statement(node: ast.Expr) -> Iterator[ast.AST]:
    if isinstance(node.value, ast.Call):
        yield ast.copy_location(ast.Pass(), node)


def _raise(node: ast.Raise) -> Iterator[ast.AST]:
    yield ast.copy_location(ast.Pass(), node)


def _with(node: ast.With) -> Iterator[ast.AST]:
    call = node.items[0].context_expr
    function = call.func if isinstance(call, ast.Call) else call
    if isinstance(function, ast.Attribute) and function.attr in CONTEXTS:
        yield ast.If(ast.Constant(True), node.body, [])


def _function(node: ast.FunctionDef) -> Iterator[ast.AST]:
    for number, decorator in enumerate(node.decorator_list):
        if "no_grad" in ast.unparse(decorator):
            node.decorator_list.pop(number)
            yield node


OPERATORS: tuple[tuple[type[ast.AST], Callable[[Any], Iterator[ast.AST]]], ...] = (
    (ast.Compare, _comparison),
    (ast.BinOp, _arithmetic),
    (ast.AugAssign, _augmented),
    (ast.UnaryOp, _unary),
    (ast.BoolOp, _both_or_either),
    (ast.Constant, _constant),
    (ast.If, _condition),
    (ast.While, _condition),
    (ast.IfExp, _condition),
    (ast.comprehension, _comprehension),
    (ast.Call, _call),
    (ast.Expr, _statement),
    (ast.Raise, _raise),
    (ast.With, _with),
    (ast.FunctionDef, _function),
)
