from __future__ import annotations

import json
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inazuma.errors import UserError
from inazuma.serve.arguments import typed, types_of
from inazuma.serve.deepseek_encoding import _calls as dsml_calls
from inazuma.serve.stream_parser import Content, Reasoning, ToolArguments, ToolStart, make_parser, markers

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "units": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "tags": {"type": "array"},
        "place": {"$ref": "#/$defs/place"},
    },
    "$defs": {"place": {"type": "object"}},
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "now"}},
]
FORMATS = ["glm45", "glm47", "deepseek_v3", "deepseek_v31", "deepseek_v32", "hermes"]


def parse(format, text, *, thinking=False, tools=TOOLS, cuts=(), truncated=False):
    """(reasoning, content, [(name, arguments text)])"""
    parser = make_parser(format, tools=tools, thinking=thinking)
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    deltas = [d for a, b in pairwise(places) for d in parser.push(text[a:b])]
    deltas += parser.finish(truncated)
    reasoning, content, calls = "", "", []
    for delta in deltas:
        match delta:
            case Content(text):
                content += text
            case Reasoning(text):
                reasoning += text
            case ToolStart(index, id, name):
                assert index == len(calls) and re.fullmatch("call_[0-9a-f]{24}", id)
                calls.append([name, "", id])
            case ToolArguments(index, fragment):
                assert index == len(calls) - 1 and fragment
                calls[index][1] += fragment
    assert len({id for _, _, id in calls}) == len(calls)
    return reasoning, content, [(name, arguments) for name, arguments, _ in calls]


def written(format, calls):
    """Calls as a model of that format writes them."""
    if format in ("glm45", "glm47"):
        line = "\n" if format == "glm45" else ""
        return line.join(
            f"<tool_call>{name}{line}"
            + "".join(
                f"<arg_key>{key}</arg_key>{line}<arg_value>"
                f"{value if isinstance(value, str) else json.dumps(value)}</arg_value>{line}"
                for key, value in arguments.items()
            )
            + "</tool_call>"
            for name, arguments in calls
        )
    if format == "deepseek_v32":
        return dsml_calls([{"function": {"name": name, "arguments": arguments}} for name, arguments in calls])
    if format == "hermes":
        return "\n".join(
            f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
            for name, arguments in calls
        )
    kind, fence, end = "", "<｜tool▁sep｜>", ""
    if format == "deepseek_v3":
        kind, fence, end = "function<｜tool▁sep｜>", "\n```json\n", "\n```"
    return (
        "<｜tool▁calls▁begin｜>"
        + "\n".join(
            f"<｜tool▁call▁begin｜>{kind}{name}{fence}{json.dumps(arguments)}{end}<｜tool▁call▁end｜>"
            for name, arguments in calls
        )
        + "<｜tool▁calls▁end｜>"
    )


CALLS = [
    ("weather", {"city": 'São "Paulo"\n', "days": 3, "units": None, "tags": ["a", {"b": 1}], "place": {"x": "y}"}}),
    ("now", {}),
    ("unknown", {"city": "日本"}),
]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
def test_reasoning_content_and_parallel_calls(format, size):
    text = f"Let me see.\n</think>\n\nOne moment.\n{written(format, CALLS)}"
    reasoning, content, calls = parse(format, text, thinking=True, cuts=range(0, len(text), size))
    assert (reasoning, content) == ("Let me see.", "One moment.")
    assert [(name, json.loads(arguments)) for name, arguments in calls] == CALLS


# Any text may be a string argument, the tag that ends arguments too, unless it reads as the end of the call goes on.
strings = st.lists(
    st.sampled_from([*'ab<>/_{}[]"\\:, \n日😀', "</arg_value>", "</｜DSML｜parameter>"]), max_size=12
).map("".join)
arguments = st.fixed_dictionaries(
    {},
    optional={
        "city": strings,
        "days": st.integers(-(10**20), 10**20),
        "tags": st.lists(strings, max_size=3),
        "place": st.dictionaries(strings, st.none() | st.booleans() | st.floats(-1e9, 1e9), max_size=2),
        "unknown": strings.map(lambda text: "x" + text),  # not in the schema; "x" keeps it from reading as JSON
    },
)


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    calls=st.lists(st.tuples(st.sampled_from(["weather", "now"]), arguments), min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 10_000), max_size=20),
)
def test_what_was_written_comes_back(format, calls, cuts):
    # `now` has no schema: its arguments are typed by how they look, which text like "[]" does not survive.
    calls = [(name, arguments if name == "weather" else {}) for name, arguments in calls]
    _, content, parsed = parse(format, "Hi" + written(format, calls), cuts=cuts)
    assert content == "Hi"
    assert [(name, json.loads(text)) for name, text in parsed] == calls


PIECES = {
    "glm45": [
        "<tool_call>", "<tool_call>weather<arg_key>place</arg_key><arg_value>", "</tool_call>",
        "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>",
    ],
    "hermes": ["<tool_call>", "</tool_call>", '{"name": "weather", ', '"arguments": ', '{"city": "x', '"', "}", "["],
    "deepseek_v31": [
        "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "{", '"a"', ": 1", "}",
        "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>",
    ],
    "deepseek_v32": [
        "<｜DSML｜function_calls>", '<｜DSML｜invoke name="weather">', '<｜DSML｜parameter name="city" string="true">',
        '<｜DSML｜parameter name="place" string="false">', "</｜DSML｜parameter>", "</｜DSML｜invoke>",
        "</｜DSML｜function_calls>",
    ],
}  # fmt: skip
IN_TAGS = ("glm45", "glm47", "deepseek_v32")
OBJECT = ["place", '{"x": "', '"', "'", "}", "\\"]
"""Of objects, with quotes that may stay open."""
PIECES |= {"glm47": PIECES["glm45"], "deepseek_v3": ["```json\n", *PIECES["deepseek_v31"]], None: []}


@pytest.mark.parametrize("format", PIECES)
@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(data=st.data(), thinking=st.booleans(), truncated=st.booleans())
def test_any_cut_of_any_text_gives_the_same(format, data, thinking, truncated):
    pieces = [*PIECES[format], "<think>", "</think>", "weather", "city", "5", "x ", "\n", "<", "<t", "日"]
    pieces += OBJECT if format in IN_TAGS else []
    text = "".join(data.draw(st.lists(st.sampled_from(pieces), max_size=14)))
    cuts = data.draw(st.lists(st.integers(0, 1000), max_size=12))
    whole = parse(format, text, thinking=thinking, truncated=truncated)
    assert parse(format, text, thinking=thinking, truncated=truncated, cuts=cuts) == whole
    assert parse(format, text, thinking=thinking, truncated=truncated, cuts=range(len(text))) == whole
    if format in IN_TAGS and not truncated:
        assert all(isinstance(json.loads(arguments), dict) for _, arguments in whole[2])


@pytest.mark.parametrize("format", FORMATS)
def test_a_call_that_is_cut_off_is_the_beginning_of_its_json(format):
    text = written(format, CALLS[:1])
    _, _, [(_, whole)] = parse(format, text)
    for end in range(len(text)):
        _, content, calls = parse(format, text[:end], truncated=True)
        # The beginning of the first marker may as well be text.
        assert not content.strip() or text[:end].strip() == content.strip()
        for name, arguments in calls:
            assert name == "weather" and whole.startswith(arguments)


@pytest.mark.parametrize("text", ['{"x": "y</arg_value></tool_call> and', "{'x': '\"</arg_value></tool_call> and"])
def test_an_object_cut_off_within_a_quote_is_the_beginning_of_its_text(text):
    opened = "<tool_call>weather<arg_key>place</arg_key><arg_value>"
    assert parse("glm47", opened + text, truncated=True) == ("", "", [("weather", '{"place": ' + text)])


@pytest.mark.parametrize("format", FORMATS)
def test_arguments_come_before_their_text_is_whole(format):
    text = written(format, [("weather", {"city": "a" * 50})])
    parser = make_parser(format, tools=TOOLS)
    deltas = [delta for character in text[: text.index("a" * 50) + 25] for delta in parser.push(character)]
    assert sum(len(delta.fragment) for delta in deltas if isinstance(delta, ToolArguments)) >= 25


# fmt: off
WRONG = [
    # No arguments at all, with and without a newline.
    ("glm45", "<tool_call>now\n</tool_call>", "", [("now", "{}")]),
    ("glm47", "<tool_call>now</tool_call>", "", [("now", "{}")]),
    ("hermes", '<tool_call>{"name": "now"}</tool_call>', "", [("now", "{}")]),
    ("hermes", '<tool_call>{"name": "now", "arguments": null}</tool_call>', "", [("now", "{}")]),
    ("deepseek_v31", "<｜tool▁call▁begin｜>now<｜tool▁sep｜><｜tool▁call▁end｜>", "", [("now", "{}")]),
    # A missing <arg_value>, </arg_value>, </arg_key>, </tool_call>.
    ("glm45", "<tool_call>now<arg_key>a</arg_key>1</arg_value></tool_call>", "", [("now", '{"a": 1}')]),
    ("glm45", "<tool_call>now<arg_key>a</arg_key><arg_value>1</tool_call>", "", [("now", '{"a": 1}')]),
    ("glm45", "<tool_call>now<arg_key>a<arg_value>1</arg_value></tool_call>", "", [("now", '{"a": 1}')]),
    ("glm45", "<tool_call>now<tool_call>now</tool_call>", "", [("now", "{}"), ("now", "{}")]),
    ("glm45", "<tool_call>weather<arg_key>city</arg_key><arg_value>x", "", [("weather", '{"city": "x"}')]),
    # Spaces between everything.
    ("glm45", "<tool_call>now <arg_key>a</arg_key> <arg_value>1</arg_value> </tool_call>", "",
     [("now", '{"a": 1}')]),
    # Text after a call is content.
    ("glm45", "A <tool_call>now</tool_call> B", "AB", [("now", "{}")]),
    # Tags in JSON's strings; a list of calls; arguments before the name, and as a string.
    ("hermes", '<tool_call>{"name": "now", "arguments": {"a": "</tool_call>"}}</tool_call>', "",
     [("now", '{"a": "</tool_call>"}')]),
    ("hermes", '<tool_call>[{"name": "now", "arguments": {}}, {"arguments": {"b": 1}, "name": "x"}]</tool_call>',
     "", [("now", "{}"), ("x", '{"b": 1}')]),
    ("hermes", '<tool_call>{"name": "now", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("now", '{"a": 1}')]),
    # A forgotten brace.
    ("hermes", '<tool_call>{"name": "now", "arguments": {"a": 1}</tool_call>', "", [("now", '{"a": 1}')]),
    ("deepseek_v31", '<｜tool▁call▁begin｜>now<｜tool▁sep｜>{"a": [1<｜tool▁call▁end｜>', "",
     [("now", '{"a": [1]}')]),
    # What is no call is shown, without its tags.
    ("hermes", "<tool_call>oops</tool_call>", "oops", []),
    ("hermes", '<tool_call>{"a": 1}</tool_call>', '{"a": 1}', []),
    # The schema knows better than the model what is text.
    ("deepseek_v32", '<｜DSML｜function_calls><｜DSML｜invoke name="weather">'
     '<｜DSML｜parameter name="days" string="true">5</｜DSML｜parameter></｜DSML｜invoke></｜DSML｜function_calls>',
     "", [("weather", '{"days": 5}')]),
]

_PLACE = "<tool_call>weather<arg_key>place</arg_key><arg_value>"
_END = "</arg_value></tool_call>"
_NOW = f"<tool_call>now<arg_key>a</arg_key><arg_value>1{_END}"
WRONG += [
    # A quote that is not closed: the value ends with its tag and is the text that stands there; calls and text after
    # it are what they are.
    ("glm47", f'{_PLACE}{{"x": "y{_END}', "", [("weather", '{"place": "{\\"x\\": \\"y"}')]),
    ("glm47", f'{_PLACE}{{"x": "y}}{_END} B', "B", [("weather", '{"place": "{\\"x\\": \\"y}"}')]),
    ("glm47", f'{_PLACE}{{"x": "y}}{_END}{_NOW}', "",
     [("weather", '{"place": "{\\"x\\": \\"y}"}'), ("now", '{"a": 1}')]),
    # One after it whose quotes close the open one.
    ("glm47", f'{_PLACE}{{"x": "y}}{_END}{_PLACE}{{"x": "z"}}{_END}', "",
     [("weather", '{"place": "{\\"x\\": \\"y}"}'), ("weather", '{"place": {"x": "z"}}')]),
    # A single one in Python's way of writing.
    ("glm47", f"{_PLACE}{{'x': 'y\"z'}}{_END}", "", [("weather", '{"place": {"x": "y\\"z"}}')]),
    # Where nothing but the end follows, it is closed as brackets are.
    ("glm47", f'{_PLACE}{{"x": "y', "", [("weather", '{"place": {"x": "y"}}')]),
    # Tags in an object's strings are text.
    ("glm47", f'{_PLACE}{{"x": "{_END}"}}{_END}', "", [("weather", f'{{"place": {{"x": "{_END}"}}}}')]),
    # An argument's last tag is text where no tag of the call comes next, whatever the schema says.
    ("glm47", f"<tool_call>now<arg_key>a</arg_key><arg_value>x</arg_value> y{_END}", "",
     [("now", '{"a": "x</arg_value> y"}')]),
    ("glm45", "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>x</arg_value>\n</arg_value>\n</tool_call>", "",
     [("weather", '{"city": "x</arg_value>\\n"}')]),
    ("glm47", f'<tool_call>now<arg_key>a</arg_key><arg_value>["</arg_value>"]{_END}', "",
     [("now", '{"a": ["</arg_value>"]}')]),
    # Where one does, the argument ends, and what no call can be read from is shown.
    ("glm47", f"<tool_call>now<arg_key>a</arg_key><arg_value>x{_END} y{_END}", f"y{_END}", [("now", '{"a": "x"}')]),
]
# fmt: on


@pytest.mark.parametrize(("format", "text", "content", "calls"), WRONG)
def test_what_models_get_wrong(format, text, content, calls):
    assert parse(format, text) == ("", content, calls)
    assert parse(format, text, cuts=range(len(text))) == ("", content, calls)


def test_reasoning():
    assert parse("glm45", "\n<think>\na\n</think>\n\nb\n") == ("a", "b\n", [])
    assert parse("glm45", "a</think>b", thinking=True) == ("a", "b", [])
    assert parse("glm47", "<think>a</think>b", thinking=True) == ("a", "b", [])
    assert parse("hermes", "</think>b") == ("", "b", [])
    assert parse(None, "a\n</think>\nb", thinking=True) == ("a", "b", [])
    assert parse("glm45", "a", thinking=True, truncated=True) == ("a", "", [])
    assert parse("glm45", "b <think> c") == ("", "b <think> c", [])
    # A call within the reasoning ends it.
    assert parse("glm45", "a<tool_call>now</tool_call>", thinking=True) == ("a", "", [("now", "{}")])


def test_without_tools_markers_are_text():
    text = "<tool_call>now</tool_call>"
    assert parse("hermes", text, tools=[]) == ("", text, [])
    assert parse(None, f" {text}\n <think>") == ("", f" {text}\n <think>", [])


def test_half_a_marker_is_not_shown():
    """Where the text was cut off; a lone "<" may be text, and what the model ended itself is what it wrote."""
    for end in range(2, len("<tool_call>")):
        assert parse("glm47", "so <tool_call>"[: 3 + end], truncated=True)[1] == "so "
    assert parse("glm47", "a <", truncated=True)[1] == "a <"
    assert parse("glm47", "a <tool")[1] == "a <tool"


def test_white_space_stays_after_what_is_no_call():
    assert parse("hermes", "<tool_call>oops</tool_call> so")[1] == "oops so"


def test_content_is_kept_as_it_is():
    text = "\n  a < b \n\n```\n<tool\n```\n  "
    assert parse("hermes", text, cuts=range(len(text))) == ("", text, [])


@pytest.mark.parametrize(
    ("text", "types", "value"),
    [
        ("5", {"string"}, "5"),
        (" 5 ", {"integer"}, 5),
        ("5", {"string", "integer"}, 5),
        ("5", {"string", "null"}, "5"),
        ("null", {"string", "null"}, None),
        ('"quoted"', {"string", "null"}, '"quoted"'),
        ("True", {"boolean"}, True),
        ("{'a': None}", {"object"}, {"a": None}),
        ("nonsense", {"integer"}, "nonsense"),
        ("NaN", {"number"}, "NaN"),
        ("5", None, 5),
        ("[1", None, "[1"),
        ("1.0", {"string", "integer"}, 1.0),
    ],
)
def test_values_are_typed_by_the_schema(text, types, value):
    result = json.loads(typed(text, types and frozenset(types)))
    assert result == value and type(result) is type(value)


def test_types_of_a_schema():
    root = {"$defs": {"a": {"enum": ["x", 1]}, "loop": {"$ref": "#/$defs/loop"}}}
    assert types_of({"type": ["string", "null"]}, root) == {"string", "null"}
    assert types_of({"$ref": "#/$defs/a"}, root) == {"string", "number", "integer"}
    assert types_of({"anyOf": [{"type": "string"}, {"const": None}]}, root) == {"string", "null"}
    assert types_of({"allOf": [{"type": ["string", "integer"]}, {"type": "integer"}]}, root) == {"integer"}
    assert types_of({"anyOf": [{"type": "string"}, {}]}, root) is None
    assert types_of({"$ref": "#/$defs/loop"}, root) is None
    assert types_of(True, root) is None


def test_markers_and_unknown_formats():
    assert {"<think>", "<tool_call>", "<arg_key>"} <= set(markers("glm45"))
    assert set(markers(None)) == {"<think>", "</think>"}
    with pytest.raises(UserError, match="pythonic"):
        make_parser("pythonic")
