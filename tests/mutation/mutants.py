"""Makes mutants of a module: each has one small change of the logic, such as a `<` that becomes `<=` or a call that is left out.

Texts are not changed: messages of errors, log lines, docstrings, types and `assert` statements stay as they are.
"""

import ast
import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

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
CALCULATIONS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
OTHER_CALLS = {"min": "max", "max": "min", "any": "all", "all": "any"}
Function = ast.FunctionDef | ast.AsyncFunctionDef
Scope = tuple[str, int]  # qualified name of a function, and the line where it begins


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a node in its tree: the parent, the parent's field, and the index if the field is a list."""

    parent: ast.AST
    field: str
    index: int | None

    def put(self, node: ast.AST) -> None:
        """Puts a node at this place, instead of the node that is there."""
        if self.index is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = node


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of a module."""

    name: str  # function, code before and after the change; it stays the same when lines above it are added
    lines: range  # of the statement, or of the head of a statement with a body
    scope: Scope | None  # the outermost function around the change; None if the change is outside of all functions
    place: Place
    replacement: ast.AST
    tree: ast.Module

    def code(self, path: str) -> object:
        """Returns the compiled module with the change. path: of the module's file."""
        before = copy.copy(getattr(self.place.parent, self.place.field))
        self.place.put(self.replacement)
        try:
            return compile(ast.fix_missing_locations(self.tree), path, "exec", dont_inherit=True)
        finally:
            setattr(self.place.parent, self.place.field, before)


def mutants_of(source: str) -> Iterator[Mutant]:
    """Yields the mutants of a module in the order of its lines."""
    tree = ast.parse(source)
    names: Counter[str] = Counter()
    for node, place, around in _walk(tree):
        for replacement in _replacements(node):
            ast.copy_location(replacement, node)
            before, after = _shown(node), _shown(replacement)
            name = f"{around.function}: {before}  ->  {after}"
            names[name] += 1
            if names[name] > 1:
                name += f"  #{names[name]}"
            yield Mutant(name, around.lines, around.scope, place, replacement, tree)


@dataclass(frozen=True, slots=True)
class Around:
    """The surroundings of a node."""

    function: str  # qualified name of the function or class
    scope: Scope | None  # the outermost function
    lines: range  # of the statement


def _walk(tree: ast.Module) -> Iterator[tuple[ast.AST, Place, Around]]:
    """Yields each node that may change, in the order of the source."""
    waiting = _children(tree, Around("", None, range(0)))
    while waiting:
        node, place, around = waiting.pop()
        if _is_text(node):
            continue
        if isinstance(node, ast.stmt):
            around = replace(around, lines=_head(node))
        elif isinstance(node, ast.match_case):
            around = replace(around, lines=range(node.pattern.lineno, node.body[0].lineno + 1))
        yield node, place, around
        if isinstance(node, ast.Raise | ast.JoinedStr):
            continue
        if isinstance(node, ast.arguments):
            around = replace(around, scope=None)  # defaults are computed where the function is made
        elif isinstance(node, Function | ast.ClassDef):
            name = f"{around.function}.{node.name}" if around.function else node.name
            scope = (name, _first_line(node)) if isinstance(node, Function) and around.scope is None else around.scope
            around = replace(around, function=name, scope=scope)
        waiting += _children(node, around)


def _children(parent: ast.AST, around: Around) -> list[tuple[ast.AST, Place, Around]]:
    """Returns the nodes below a node, the last one first."""
    children: list[tuple[ast.AST, Place, Around]] = []
    for field, value in ast.iter_fields(parent):
        if field not in {"decorator_list", "annotation", "returns", "bases"}:
            for index, child in enumerate(value) if isinstance(value, list) else ((None, value),):
                if isinstance(child, ast.AST):
                    children.append((child, Place(parent, field, index), around))
    return children[::-1]


def _head(statement: ast.stmt) -> range:
    """Returns the lines of a statement without its body."""
    body = getattr(statement, "body", None) or getattr(statement, "cases", None)
    first = getattr(body[0], "lineno", None) or body[0].pattern.lineno if body else None
    end = statement.end_lineno or statement.lineno
    return range(statement.lineno, end + 1 if first is None else max(statement.lineno + 1, first))


def _first_line(node: Function) -> int:
    return min(node.lineno, *(decorator.lineno for decorator in node.decorator_list), node.lineno)


def _is_text(node: ast.AST) -> bool:
    """Returns whether a node holds only texts, types or records for people, which no mutant changes."""
    match node:
        case ast.Assert() | ast.Import() | ast.ImportFrom() | ast.FunctionDef(name="__repr__"):
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.Expr(value=ast.Constant() | ast.Call(func=ast.Name(id="assert_never"))):
            return True
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id="log")))):
            return True
        case ast.keyword(arg="strict" | "repr"):  # the lengths of zip's arguments are equal unless the code is wrong
            return True
        case ast.BinOp(op=ast.BitOr(), right=ast.Constant(value=None)):  # a union of types
            return True
        case ast.BinOp(op=ast.BitOr(), right=ast.Name(id=name)) if name[0].isupper():
            return True
        case ast.BinOp(op=ast.BitOr(), right=ast.Attribute(attr=name)) if name[0].isupper():
            return True
    return False


def _shown(node: ast.AST) -> str:
    if isinstance(node, ast.Pass):
        return "left out"
    if isinstance(node, ast.If | ast.While):
        word = "if" if isinstance(node, ast.If) else "while"
        return f"{word} {ast.unparse(node.test)}"
    if isinstance(node, ast.With | ast.AsyncWith):
        return f"with {', '.join(ast.unparse(item) for item in node.items)}"
    if isinstance(node, ast.match_case):
        guard = f" if {ast.unparse(node.guard)}" if node.guard is not None else ""
        return f"case {ast.unparse(node.pattern)}{guard}"
    return " ".join(ast.unparse(node).split())


def _replacements(node: ast.AST) -> Iterator[ast.AST]:
    """Yields the nodes that may stand instead of a node, each as a mutant of its own."""
    match node:
        case ast.Compare(ops=ops):
            for position, operator in enumerate(ops):
                if (other := COMPARISONS.get(type(operator))) is not None:
                    changed = copy.copy(node)
                    changed.ops = [*ops[:position], other(), *ops[position + 1 :]]
                    yield changed
        case ast.BoolOp(op=operator, values=values):
            for position in range(len(values)):
                rest = [*values[:position], *values[position + 1 :]]
                yield rest[0] if len(rest) == 1 else ast.BoolOp(operator, rest)
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert(), operand=operand):
            yield operand
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in CALCULATIONS:
            yield ast.BinOp(left, CALCULATIONS[type(operator)](), right)
        case ast.AugAssign(target=target, op=operator, value=value) if type(operator) in CALCULATIONS:
            yield ast.AugAssign(target, CALCULATIONS[type(operator)](), value)
        case ast.Constant(value=bool(truth)):
            yield ast.Constant(not truth)
        case ast.Constant(value=int() | float() as number):
            yield ast.Constant(number + 1)
        case ast.Call(func=ast.Name(id=name)) if name in OTHER_CALLS:
            changed_call = copy.copy(node)
            changed_call.func = ast.copy_location(ast.Name(OTHER_CALLS[name], ast.Load()), node.func)
            yield changed_call
        case ast.IfExp(body=body, orelse=orelse):
            yield body
            yield orelse
        case ast.comprehension(ifs=ifs):
            for position in range(len(ifs)):
                loop = copy.copy(node)
                loop.ifs = [*ifs[:position], *ifs[position + 1 :]]
                yield loop
        case ast.match_case(guard=ast.expr()):
            case = copy.copy(node)
            case.guard = None
            yield case
        case ast.stmt():
            yield from _other_statements(node)


def _other_statements(node: ast.stmt) -> Iterator[ast.stmt]:
    match node:
        case ast.If(test=test, body=body, orelse=orelse):
            for truth in (False, True):
                if not (isinstance(test, ast.Constant) and test.value == truth):
                    yield ast.If(_constant_like(test, truth), body, orelse)
        case ast.While(test=test, body=body, orelse=orelse) if not isinstance(test, ast.Constant):
            yield ast.While(_constant_like(test, False), body, orelse)
        case ast.With(items=items, body=body) | ast.AsyncWith(items=items, body=body):
            if all(item.optional_vars is None and not _is_span(item.context_expr) for item in items):
                yield ast.If(ast.Constant(True), body, [])
        case ast.Expr(value=ast.Call() | ast.Await()) | ast.Raise() | ast.Break() | ast.Continue():
            yield ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield ast.Pass()


def _is_span(context: ast.expr) -> bool:
    """Returns whether a context only records times for people: a span of a trace, or a timer of a metric."""
    match context:
        case ast.Call(func=ast.Name(id="span")) | ast.Call(func=ast.Attribute(attr="time")):
            return True
    return False


def _constant_like(test: ast.expr, truth: bool) -> ast.expr:
    """Returns an expression with a constant truth that still assigns the names that the test assigns (`:=`)."""
    assigns = any(isinstance(node, ast.NamedExpr) for node in ast.walk(test))
    if not assigns:
        return ast.Constant(truth)
    # `test or True` and `test and False` evaluate the test.
    return ast.BoolOp(ast.Or() if truth else ast.And(), [test, ast.Constant(truth)])
