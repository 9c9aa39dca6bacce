"""The sandbox in which chat templates run: an allow-list throughout, with a meter behind every operation.

Knows what published templates need: syntax, names, attributes, filters, tests and globals, each listed; what
is not listed does not exist. Every value has a size cap, and every loop turn, call, filter and operator
costs a step, so that a template ends, quickly and small, whatever it says. Does not know messages or prompts.

Source of the expected surroundings: transformers' chat template utilities (names, tojson, whitespace rules).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.lexer
import jinja2.nodes as nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils

from tensure.errors import LimitError

from ._chat_budget import (
    ADVICE,
    MAX_INT_BITS,
    MAX_ITEMS,
    MAX_OUTPUT_CHARS,
    bounded,
    charge,
    too_long,
    weigh,
)

__all__ = ["ENVIRONMENT", "HostFunction"]

MAX_TOKENS = 10_000
"""In one template; the longest that are published have about 4,000."""


class HostFunction:
    """Something of ours, beyond the fixed globals, that a template may call."""


# --- the functions that templates may call -----------------------------------------------------------------


def _raise_exception(message: object) -> NoReturn:
    raise jinja2.TemplateError(
        f"it refuses these messages: {str(message)[:300] if isinstance(message, str) else ''}"
    )


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if indent is not None and not 0 <= indent <= 16:
        raise ValueError("tojson indents by 0 to 16")
    if weigh(separators) > 16:
        raise ValueError("tojson separators are too long")
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _text(value: object) -> str:
    """A value as a template prints it: like Python, for plain data only."""
    if isinstance(value, str):
        return str(value)
    if value is None or isinstance(value, bool | int | float | jinja2.Undefined):
        return str(value)
    if isinstance(value, list | tuple | dict):
        weigh(value)
        return str(value) if _is_plain(value) else _no_text(value)
    return _no_text(value)


def _is_plain(root: object) -> bool:
    pending = [root]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            pending += value
        elif not (value is None or isinstance(value, str | bool | int | float | jinja2.Undefined)):
            return False
    return True


def _no_text(value: object) -> NoReturn:
    raise TypeError(f"a {type(value).__name__} has no text")


def _concat(parts: Sequence[object]) -> str:
    texts = [_text(part) for part in parts]
    if sum(map(len, texts)) > MAX_OUTPUT_CHARS:
        raise too_long()
    return "".join(texts)


def _join(value: Iterable[object], d: str = "") -> str:
    parts = list(value)
    return _concat([part for item in parts for part in (d, item)][1:])


def _replace(text: object, old: str, new: str, count: int = -1) -> str:
    text = _text(text)
    hits = text.count(old) if count < 0 else min(text.count(old), count)
    if len(text) + hits * (len(new) - len(old)) > MAX_OUTPUT_CHARS:
        raise too_long()
    return text.replace(old, new, count)


def _indent(text: object, width: int = 4, first: bool = False, blank: bool = False) -> str:
    text = _text(text)
    if not 0 <= width <= 64 or len(text) + width * (text.count("\n") + 1) > MAX_OUTPUT_CHARS:
        raise LimitError("the chat template indents by too much", wanted="at most 64")
    lines = [(" " * width if line or blank else "") + line for line in text.split("\n")]
    return "\n".join(lines) if first else "\n".join([text.split("\n")[0], *lines[1:]])


def _remainder(value: object, number: object) -> int:
    # Jinja's own tests apply % to whatever comes, text formatting included.
    if not isinstance(value, int) or not isinstance(number, int):
        raise TypeError("only an integer is odd, even or divisible")
    return value % number


def _range(*bounds: int) -> range:
    numbers = range(*bounds)
    if len(numbers) > MAX_ITEMS:
        raise LimitError(f"the chat template counts to {len(numbers)}", wanted=f"at most {MAX_ITEMS}")
    return numbers


_OWN_FILTERS: Mapping[str, Callable[..., Any]] = {
    "tojson": _tojson,
    "string": _text,
    "join": _join,
    "replace": _replace,
    "indent": _indent,
}
_FILTERS = (
    "abs capitalize count d default dictsort first float int items last length list lower map max min reject "
    "rejectattr reverse select selectattr sort sum title trim unique upper"
).split()
_TESTS = (
    "boolean callable defined eq equalto false float ge greaterthan gt in integer iterable le "
    "lessthan lower lt mapping ne none number sameas sequence string true undefined upper == != < <= > >="
).split()


# --- the sandbox -------------------------------------------------------------------------------------------

_STR_METHODS = frozenset(
    "capitalize count endswith find index isalpha isdigit islower isnumeric isspace isupper lower lstrip "
    "removeprefix removesuffix rfind rsplit rstrip split splitlines startswith strip title upper".split()
)
# Methods whose result can be far longer than what they are given: ours look before they build.
_STR_OWN: Mapping[str, Callable[..., str]] = {
    "replace": _replace,
    "join": lambda separator, parts: _join(parts, separator),
}
_DICT_METHODS = frozenset({"get", "items", "keys", "values"})
_LIST_METHODS = frozenset({"count", "index"})
_LOOP_NAMES = frozenset(
    "changed cycle depth depth0 first index index0 last length nextitem previtem revindex revindex0".split()
)
_ALLOWED_NODES = (
    nodes.Template,
    nodes.Output,
    nodes.TemplateData,
    nodes.If,
    nodes.For,
    nodes.Macro,
    nodes.CallBlock,
    nodes.Assign,
    nodes.AssignBlock,
    nodes.FilterBlock,
    nodes.With,
    nodes.ExprStmt,
    nodes.Scope,
    nodes.Break,
    nodes.Continue,
    nodes.Name,
    nodes.NSRef,
    nodes.Const,
    nodes.Tuple,
    nodes.List,
    nodes.Dict,
    nodes.Pair,
    nodes.Keyword,
    nodes.CondExpr,
    nodes.Filter,
    nodes.Test,
    nodes.Call,
    nodes.Getattr,
    nodes.Getitem,
    nodes.Slice,
    nodes.Concat,
    nodes.Compare,
    nodes.Operand,
    nodes.BinExpr,
    nodes.UnaryExpr,
)


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja with allow-lists in place of deny-lists, and a budget behind every operation."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})
    intercepted_unops = frozenset({"+", "-"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            autoescape=False,
            optimized=False,
            finalize=_emit,
            extensions=[jinja2.ext.LoopControlExtension, _GenerationTag],
            cache_size=0,
        )
        stock_filters, stock_tests = self.filters, self.tests
        self.filters = {name: _metered(stock_filters[name]) for name in _FILTERS}
        self.filters |= {name: _metered(function) for name, function in _OWN_FILTERS.items()}
        # No template can write these, as its names are identifiers: the checked tree's way to our helpers.
        self.filters |= {"+concat": _metered(_concat), "+bounded": _metered(bounded), "+tick": _tick}
        self.tests = {name: stock_tests[name] for name in _TESTS}
        self.tests |= {
            "odd": lambda value: _remainder(value, 2) == 1,
            "even": lambda value: _remainder(value, 2) == 0,
        }
        self.tests["divisibleby"] = lambda value, number: _remainder(value, number) == 0
        self.globals = {
            "range": _range,
            "namespace": jinja2.runtime.Namespace
            if hasattr(jinja2.runtime, "Namespace")
            else self.globals["namespace"],
            "dict": dict,
            "raise_exception": _raise_exception,
        }

    def _tokenize(
        self, source: str, name: str | None, filename: str | None = None, state: str | None = None
    ) -> jinja2.lexer.TokenStream:
        return jinja2.lexer.TokenStream(
            _few(super()._tokenize(source, name, filename, state)), name, filename
        )

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _checked(jinja2.parser.Parser(self, source, name, filename).parse())

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Only what templates need of text, mappings, lists, loops and namespaces."""
        if isinstance(obj, str):
            return attr in _STR_METHODS
        if isinstance(obj, dict):
            return attr in _DICT_METHODS
        if isinstance(obj, list | tuple):
            return attr in _LIST_METHODS
        if isinstance(obj, jinja2.runtime.LoopContext):
            return attr in _LOOP_NAMES
        return isinstance(obj, jinja2.utils.Namespace) and not attr.startswith("_")

    def is_safe_callable(self, obj: Any) -> bool:
        """Macros, loops, our own functions, and the methods that `is_safe_attribute` let through."""
        if isinstance(obj, jinja2.runtime.Macro | jinja2.runtime.LoopContext | HostFunction):
            return True
        if isinstance(obj, partial):
            return obj.func in _STR_OWN.values()
        if obj in (_range, _raise_exception, dict, jinja2.utils.Namespace):
            return True
        owner = getattr(obj, "__self__", None)
        name = getattr(obj, "__name__", "")
        return owner is not None and not isinstance(owner, type) and self.is_safe_attribute(owner, name, obj)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """`message.role`: an allowed attribute, or else an item; never anything of Python's own."""
        if isinstance(obj, str) and attribute in _STR_OWN:
            return partial(_STR_OWN[attribute], obj)
        if hasattr(type(obj), attribute) or isinstance(obj, jinja2.utils.Namespace):
            return super().getattr(obj, attribute)
        try:
            return obj[attribute]
        except (TypeError, LookupError, AttributeError):
            return self.undefined(obj=obj, name=attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """`message["role"]`: an item only; Jinja's way round to attributes is closed."""
        if isinstance(obj, jinja2.Undefined):
            return obj[argument]
        try:
            return obj[argument]
        except (TypeError, LookupError, AttributeError):
            return self.undefined(
                obj=obj, name=str(argument)[:80] if isinstance(argument, str | int) else "item"
            )

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """A call, one step dearer than the work it does."""
        charge(1)
        bounded(args)  # a macro sees its arguments as one list, which can grow from call to call
        bounded(kwargs)
        return bounded(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Arithmetic whose result is known to be small before it is computed."""
        charge(1)
        texts = isinstance(left, str | list | tuple), isinstance(right, str | list | tuple)
        if operator == "%" and texts[0]:
            raise TypeError("text formatting with % is not offered")
        if operator == "*" and any(texts):
            sequence, times = (left, right) if texts[0] else (right, left)
            if not isinstance(sequence, str) or not isinstance(times, int):
                raise TypeError("only text can be repeated")
            if len(sequence) * max(times, 0) > MAX_OUTPUT_CHARS:
                raise LimitError(f"the chat template repeats a text {times} times", next_step=ADVICE)
        if operator == "**":
            if not isinstance(left, int | float) or not isinstance(right, int | float) or abs(right) > 64:
                raise LimitError("the chat template raises a number to a large power", wanted="at most 64")
        if operator == "+" and all(texts) and len(left) + len(right) > MAX_OUTPUT_CHARS:
            raise too_long()
        return bounded(super().call_binop(context, operator, left, right))


def _metered(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that costs a step and gives something small; lazy results are drawn out, each item a step."""

    def filtered(*args: Any, **kwargs: Any) -> Any:
        charge(1)
        for argument in args:
            if isinstance(argument, list | tuple | dict | str):
                charge(len(argument) // 1024)
        result = function(*args, **kwargs)
        if isinstance(result, Iterator):
            items = []
            for item in result:
                charge(1)
                items.append(item)
            result = items
        return bounded(result)

    for mark in ("jinja_pass_arg", "jinja_async_variant"):
        if hasattr(function, mark):
            setattr(filtered, mark, getattr(function, mark))
    return filtered


def _tick(chars: int) -> str:
    charge(1, abs(chars))
    return ""


@jinja2.pass_context  # which also keeps Jinja from working constants out before the budget counts
def _emit(_context: jinja2.runtime.Context, value: object) -> str:
    """Every expression a template prints passes here, also into captures."""
    text = _text(value)
    charge(1, len(text))
    return text


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}`: marks the assistant's own words for training; here just its contents."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node | list[nodes.Node]:
        """Give the statements between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _few(tokens: Iterable[jinja2.lexer.Token]) -> Iterator[jinja2.lexer.Token]:
    """The tokens one by one, up to what may be compiled: that costs about 0.1 ms for each."""
    for number, token in enumerate(tokens):
        if number >= MAX_TOKENS:
            raise LimitError(
                f"the chat template has more than {MAX_TOKENS} tokens",
                place=f"line {token.lineno}",
                wanted="a shorter template",
            )
        yield token


# --- the checked tree --------------------------------------------------------------------------------------


def _checked(template: nodes.Template) -> nodes.Template:
    """The template with unknown syntax refused, and with meters where Jinja itself has no hook.

    Literals and `~` are measured; loop and macro bodies begin with a tick that pays for their fixed text.
    """
    pending: list[nodes.Node] = [template]
    found: list[nodes.Node] = []
    while pending:
        node = pending.pop()
        found.append(node)
        _check_node(node)
        for field, value in node.iter_fields():
            if isinstance(value, nodes.Node):
                setattr(node, field, _wrapped(value))
                pending.append(value)
            elif isinstance(value, list):
                pending += [item for item in value if isinstance(item, nodes.Node)]
                value[:] = [_wrapped(item) if isinstance(item, nodes.Node) else item for item in value]
    for node in found:
        if isinstance(node, nodes.For | nodes.Macro | nodes.CallBlock):
            chars = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
            node.body.insert(0, _ticking(chars, node.lineno))
    return template


def _check_node(node: nodes.Node) -> None:
    if not isinstance(node, _ALLOWED_NODES) or type(node).__name__ not in _ALLOWED_NAMES:
        _refuse(node, f"a template may not use {type(node).__name__.lower()}")
    name = {nodes.Getattr: "attr", nodes.NSRef: "attr", nodes.Name: "name", nodes.Macro: "name"}.get(
        type(node)
    )
    if name is not None and str(getattr(node, name)).startswith("_"):
        _refuse(node, f"a template may not use the name {str(getattr(node, name))[:40]!r}")
    if (
        isinstance(node, nodes.Const)
        and isinstance(node.value, int)
        and node.value.bit_length() > MAX_INT_BITS
    ):
        _refuse(node, "a number is too large")


_ALLOWED_NAMES = frozenset(kind.__name__ for kind in _ALLOWED_NODES) | {
    kind.__name__ for kind in (*nodes.BinExpr.__subclasses__(), *nodes.UnaryExpr.__subclasses__())
}


def _refuse(node: nodes.Node, what: str) -> NoReturn:
    raise jinja2.TemplateSyntaxError(what, node.lineno or 1)


def _wrapped(node: nodes.Node) -> nodes.Node:
    if isinstance(node, nodes.Concat):
        parts = nodes.List(list(node.nodes), lineno=node.lineno)
        node.nodes = parts.items  # the walk goes on below the node itself
        return _filter(parts, "+concat")
    if isinstance(node, nodes.List | nodes.Dict) or (isinstance(node, nodes.Tuple) and node.ctx == "load"):
        return _filter(node, "+bounded")
    return node


def _filter(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _ticking(chars: int, line: int) -> nodes.Stmt:
    tick = _filter(nodes.Const(chars, lineno=line), "+tick")
    return nodes.ExprStmt(tick, lineno=line)


ENVIRONMENT = _Environment()
