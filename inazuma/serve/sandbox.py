"""Jinja templates that come with models, run so that they can do nothing but write a bounded text in bounded time.

Jinja's own sandbox keeps templates from the program's insides. It does not keep them from looping for ever or from
filling the memory, which one malformed template would do to everyone that a server serves. So every round of a loop is
counted, whatever makes text long is looked at before it does, and filters that do neither and that no chat template
needs are left out.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes, pass_environment
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from inazuma.errors import UserError

LONGEST = 1 << 25
"""Characters of a text, written or in the making; a list's element counts as 32."""
STEPS = 1_000_000
"""Rounds of loops, calls of macros and of methods."""
SECONDS = 10.0

_WITHOUT = ("batch", "slice", "urlize", "wordwrap", "pprint", "xmlattr", "filesizeformat", "random", "sum")


class TooMuch(Exception):
    """A template went over its bounds."""


class _Meter:
    def __init__(self) -> None:
        self.steps = self.written = 0
        self.deadline = time.monotonic() + SECONDS

    def step(self, written: int = 0) -> None:
        self.steps += 1
        self.write(written)
        if self.steps > STEPS or time.monotonic() > self.deadline:
            raise TooMuch("it runs for too long")

    def write(self, length: int) -> None:
        self.written += length
        self.check(self.written)

    @staticmethod
    def check(length: int) -> None:
        if length > LONGEST:
            raise TooMuch("it makes a text that is too long")

    def text(self, value: Any) -> str:
        """`str(value)`, where that is not too long."""
        if not isinstance(value, str):
            self.check_deep(value)
        return str(value)

    def check_deep(self, value: Any) -> None:
        """The same for what a list or a dict holds: one long text may stand in it any number of times."""
        waiting, length = [value], 0
        while waiting:
            value = waiting.pop()
            length += len(value) + 1 if isinstance(value, str) else 1
            self.check(length)
            if isinstance(value, list | tuple | dict):
                self.check(length + len(value))
                waiting.extend(value)
                waiting.extend(value.values() if isinstance(value, dict) else ())


_METER: ContextVar[_Meter] = ContextVar("meter")


class _Bounds(Extension):
    """What templates are made to call; also takes Hugging Face's `{% generation %}` (it marks what models are trained
    on) as if it were not there."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def step(self, written: int) -> None:
        _METER.get().step(written)

    def join(self, *parts: Any) -> str:
        return _joined([_METER.get().text(part) for part in parts], "")


class _Counted(NodeTransformer):
    """Puts a step, and the count of the text that stands there, before each body that may run often."""

    def __init__(self, bounds: Extension):
        self._bounds = bounds

    def _body(self, node: Any) -> Any:
        self.generic_visit(node)
        written = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        call = self._bounds.call_method("step", [nodes.Const(written)], lineno=node.lineno)
        node.body.insert(0, nodes.ExprStmt(call, lineno=node.lineno))
        return node

    visit_For = visit_Macro = visit_CallBlock = _body

    def visit_Concat(self, node: Any) -> Any:
        self.generic_visit(node)
        return self._bounds.call_method("join", node.nodes, lineno=node.lineno)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Bounds, loopcontrols], finalize=_written)
        for name in _WITHOUT:
            del self.filters[name]
        self.filters |= {
            "tojson": _tojson,
            "join": _join,
            "string": lambda value: _METER.get().text(value),
            "replace": lambda text, old, new, count=-1: _replace(str(text), str(old), str(new), count),
            "center": lambda text, width=80: _method(str(text), "center")(width),
            "indent": _indent(self.filters["indent"]),
            "format": lambda form, *args, **kwargs: _formatted(str(form), kwargs or args),
        }
        del self.globals["lipsum"]
        self.globals |= {"raise_exception": _raise, "strftime_now": _now}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Counted(self.extensions[_Bounds.identifier]).visit(super()._parse(source, name, filename))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        meter = _METER.get()
        if operator == "%" and isinstance(left, str):
            return _formatted(left, right)
        if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            meter.check(_length(left) + _length(right))
        if operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(one, str | list | tuple) and isinstance(other, int):
                    meter.check(_length(one) * other)
        # Whole numbers have no bound in Python.
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            meter.check(left.bit_length() * (right if operator == "**" else right.bit_length()))
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Any:
        form = getattr(value, "__self__", None)
        if isinstance(form, str) and value.__name__ in ("format", "format_map"):
            _check_braces(form)
        return super().wrap_str_format(value)

    def call(self, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        _METER.get().step()
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        if isinstance(owner, str):
            function = _method(owner, name) or function
        return super().call(context, function, *args, **kwargs)


def _length(value: str | list | tuple) -> int:
    return len(value) * (1 if isinstance(value, str) else 32)


def _written(value: Any) -> str:
    """Counts what `{{ … }}` writes, also where it is caught (`{% set %}`, macros) and comes to the output later."""
    text = _METER.get().text(value)
    _METER.get().write(len(text))
    return text


def _method(text: str, name: str) -> Callable | None:
    """A method of text that looks first; None for those that make no text long."""
    if name in ("ljust", "rjust", "center", "zfill"):
        return lambda width, *fill: (_METER.get().check(width), getattr(text, name)(width, *fill))[1]
    if name == "expandtabs":
        return lambda tabsize=8: (_METER.get().check(len(text) * max(tabsize, 1)), text.expandtabs(tabsize))[1]
    if name == "replace":
        return lambda old, new, count=-1: _replace(text, old, new, count)
    if name == "join":
        return lambda parts: _joined(list(parts), text)
    return None


_WIDE_PERCENT, _WIDE_BRACES = re.compile(r"%[^a-zA-Z%]*(\d{5}|\*)"), re.compile(r"\{[^{}]*(\d{5}|\{)")
"""Widths in a format that are large, or computed."""


def _check_braces(form: str) -> None:
    if _WIDE_BRACES.search(form.replace("{{", "")):
        raise TooMuch("it pads text too far")


def _formatted(form: str, values: Any) -> str:
    if _WIDE_PERCENT.search(form):
        raise TooMuch("it pads text too far")
    return form % values


def _replace(text: str, old: str, new: str, count: int | None = -1) -> str:
    times = text.count(old) if count is None or count < 0 else min(count, text.count(old))
    _METER.get().check(len(text) + times * len(new))
    return text.replace(old, new, -1 if count is None else count)


@pass_environment
def _join(environment: jinja2.Environment, values: Any, separator: Any = "", attribute: Any = None) -> str:
    values = list(values) if attribute is None else list(map(make_attrgetter(environment, attribute), values))
    return _joined([_METER.get().text(value) for value in values], str(separator))


def _joined(parts: list[str], separator: str) -> str:
    _METER.get().check(sum(map(len, parts)) + len(separator) * len(parts))
    return separator.join(parts)


def _indent(indent: Callable) -> Callable:
    def checked(text: str, width: int | str = 4, *args: Any, **kwargs: Any) -> str:
        each = width if isinstance(width, int) else len(width)
        _METER.get().check(len(text) + each * (text.count("\n") + 1))
        return indent(text, width, *args, **kwargs)

    return checked


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # Jinja's own escapes what is special in HTML; models were trained on plain JSON.
    _METER.get().check_deep(value)
    if isinstance(indent, int):
        _METER.get().check(indent * 1000)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: Any) -> None:
    raise jinja2.TemplateError(str(message))


def _now(form: str) -> str:
    return datetime.now().strftime(form)


@lru_cache(maxsize=16)
def variables(source: str) -> frozenset[str]:
    """The variables that a template takes.

    Raises:
        UserError: It is malformed.
    """
    with _Guard():
        return frozenset(find_undeclared_variables(_Environment().parse(source)))


@lru_cache(maxsize=16)
def compile_template(source: str) -> Callable[..., str]:
    """A function of a template's variables that returns its text; any number of threads may call it.

    Raises:
        UserError: The template is malformed. The function raises it where the template refuses its input, fails, or
            goes over its bounds.
    """
    with _Guard():
        template = _Environment().from_string(source)

    def render(**values: Any) -> str:
        with _Guard():
            return template.render(values)

    return render


class _Guard:
    """A meter, and one line for whatever goes wrong."""

    def __enter__(self) -> None:
        self._token = _METER.set(_Meter())

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        _METER.reset(self._token)
        if not isinstance(error, Exception) or isinstance(error, UserError):
            return
        said = " ".join(str(error).split())
        if isinstance(error, jinja2.TemplateSyntaxError):
            said = f"line {error.lineno}: {said}"
        elif not isinstance(error, jinja2.TemplateError | TooMuch):
            said = f"{type(error).__name__}: {said}"
        raise UserError(f"the model's chat template: {said}") from None
