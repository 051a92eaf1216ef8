"""Jinja templates that come with models, run so that they can do nothing but write a bounded text in bounded time."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from inazuma.errors import UserError

LONGEST = 32 << 20
"""Characters of a text, whole or in the making."""
STEPS = 2_000_000
"""Rounds of loops and calls of macros."""
SECONDS = 20.0


class TooMuch(Exception):
    """A template went over its bounds."""


class _Meter:
    def __init__(self) -> None:
        self.steps = 0
        self.deadline = time.monotonic() + SECONDS


class _Bounds(Extension):
    """Counts every round of a loop and every macro's call, looks at the length of what `~` joins; and takes
    Hugging Face's `{% generation %}` (which marks what a model is trained on) as if it were not there."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def step(self) -> None:
        self.environment.step()

    def join(self, *parts: Any) -> str:
        return self.environment.checked("".join(map(str, parts)))


class _Count(NodeTransformer):
    def __init__(self, extension: _Bounds):
        self._extension = extension

    def _counted(self, node: Any) -> Any:
        self.generic_visit(node)
        call = self._extension.call_method("step", lineno=node.lineno)
        node.body.insert(0, nodes.ExprStmt(call, lineno=node.lineno))
        return node

    visit_For = visit_Macro = visit_CallBlock = _counted

    def visit_Concat(self, node: Any) -> Any:
        self.generic_visit(node)
        return self._extension.call_method("join", node.nodes, lineno=node.lineno)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Bounds, loopcontrols])
        self.meter = _Meter()
        self.filters["tojson"] = _tojson
        self.globals |= {"raise_exception": _raise, "strftime_now": lambda form: datetime.now().strftime(form)}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        return _Count(self.extensions[_Bounds.identifier]).visit(tree)

    def step(self) -> None:
        self.meter.steps += 1
        if self.meter.steps > STEPS or time.monotonic() > self.meter.deadline:
            raise TooMuch("it runs too long")

    def checked(self, value: Any) -> Any:
        if isinstance(value, str | list | tuple) and len(value) > LONGEST:
            raise TooMuch("its text grows too long")
        return value

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*" and (isinstance(left, str | list | tuple) or isinstance(right, str | list | tuple)):
            sequence, times = (right, left) if isinstance(left, int) else (left, right)
            if isinstance(times, int) and len(sequence) * times > LONGEST:
                raise TooMuch("its text grows too long")
        if operator == "**" or (operator == "*" and max(_bits(left), _bits(right)) > 4096):
            if operator == "**" and (_bits(left) > 64 or not isinstance(right, int | float) or abs(right) > 64):
                raise TooMuch("it computes with numbers that are too large")
        if operator == "%" and isinstance(left, str):
            _check_widths(left)
        return self.checked(super().call_binop(context, operator, left, right))


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _check_widths(form: str) -> None:
    if re.search(r"\d{5}|\*", form):
        raise TooMuch("it pads text too far")


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
):
    # Jinja's own escapes what is special in HTML; models were trained on plain JSON.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: Any) -> None:
    raise jinja2.TemplateError(str(message))


@lru_cache(maxsize=8)
def variables(source: str) -> frozenset[str]:
    """The variables that a template takes."""
    return frozenset(find_undeclared_variables(_parsed(source)))


def _parsed(source: str) -> nodes.Template:
    try:
        return _Environment().parse(source)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"chat template, line {error.lineno}: {error.message}") from None


def compile_template(source: str) -> Callable[..., str]:
    """A function of a template's variables that returns its text.

    Raises:
        UserError: The template is malformed. The function raises it where the template refuses its input, fails, or
            goes over its bounds.
    """
    environment = _Environment()
    try:
        template = environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"chat template, line {error.lineno}: {error.message}") from None

    def render(**values: Any) -> str:
        environment.meter = _Meter()
        pieces, length = [], 0
        try:
            for piece in template.generate(**values):
                length += len(piece)
                if length > LONGEST:
                    raise TooMuch("its text grows too long")
                pieces.append(piece)
        except (jinja2.TemplateError, TooMuch) as error:
            raise UserError(f"chat template: {' '.join(str(error).split())}") from None
        except Exception as error:
            raise UserError(f"chat template: {type(error).__name__}: {' '.join(str(error).split())}") from None
        return "".join(pieces)

    return render
