from __future__ import annotations

import json
import random
import time

import jsonschema
import pytest
import torch

from inazuma.errors import UserError
from inazuma.serve.constrain import GrammarMask, Grammars
from inazuma.serve.detokenize import Detokenizer
from inazuma.serve.stream_parser import Reasoning, ToolArguments, ToolStart, make_parser
from tests.serve.vocabularies import byte_level, sentencepiece

STOP = 0
TOKENIZER = byte_level()
PADDED = TOKENIZER.get_vocab_size() + 40
GRAMMARS = Grammars(TOKENIZER, PADDED, [STOP])


def allowed(mask: GrammarMask, vocab_size: int) -> list[int]:
    bitmask = torch.full(((vocab_size + 31) // 32,), -1, dtype=torch.int32)
    mask.fill(bitmask)
    bits = (bitmask[:, None] >> torch.arange(32, dtype=torch.int32)) & 1
    return bits.flatten().nonzero().flatten().tolist()


ENDINGS = ["</think>", "</arg_value>", "</｜DSML｜parameter>", "</｜DSML｜function_calls>", "<｜tool▁calls▁end｜>"]
ENDINGS += ['"', "}", "]", "yy", "{}"]


def walk(mask, tokenizer, vocab_size, seed, steps=150) -> str:
    """The text of a "model" that draws at random from what the mask allows and after some steps tries to end."""
    draw = random.Random(seed)
    endings = [tokenizer.encode(text, add_special_tokens=False).ids for text in ENDINGS]
    detokenizer, text, forced = Detokenizer(tokenizer, skip_special_tokens=False), "", []
    for step in range(steps + 1000):
        choices = allowed(mask, vocab_size)
        assert choices and max(choices) < tokenizer.get_vocab_size()
        if STOP in choices and (step > steps or len(choices) == 1 or draw.random() < 0.3):
            assert mask.accept(STOP)
            return text + detokenizer.flush()
        choices = [token for token in choices if token != STOP]
        if step > steps and not forced:
            forced = next((list(e) for e in draw.sample(endings, len(endings)) if follows(mask, e, vocab_size)), [])
        token = forced.pop(0) if forced else draw.choice(choices)
        assert token in choices and mask.accept(token)
        text += detokenizer.push(token)
    raise AssertionError(f"no end: {text}")


def follows(mask, tokens, vocab_size) -> bool:
    mask = mask.fork()
    return all(token in allowed(mask, vocab_size) and mask.accept(token) for token in tokens)


def matches(mask, text, tokenizer=TOKENIZER) -> bool:
    """Whether a grammar takes the whole text, written with the tokenizer's own tokens, and may end there."""
    return all(mask.accept(token) for token in tokenizer.encode(text, add_special_tokens=False).ids) and mask.accept(
        STOP
    )


PLACE = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 2, "maxLength": 9},
        "inner": {"type": "array", "items": {"$ref": "#/$defs/place"}, "maxItems": 2},
    },
    "required": ["name"],
    "additionalProperties": False,
}
SCHEMAS = {
    "object": {"type": "object"},
    "recursive": {"$defs": {"place": PLACE}, "$ref": "#/$defs/place"},
    "closed": {
        "type": "object",
        "properties": {
            "a": {"enum": ["x", 1, None, {"b": []}]},
            "n": {"type": "number", "minimum": -2.5, "exclusiveMaximum": 10},
            "i": {"type": "integer", "multipleOf": 3},
            "p": {"type": "string", "pattern": "^[a-zé]{2,5}$"},
            "d": {"type": "string", "format": "date"},
            "u": {"anyOf": [{"type": "boolean"}, {"type": "array", "prefixItems": [{"type": "null"}], "minItems": 1}]},
            "o": {"oneOf": [{"type": "null"}, {"const": "日本"}]},
        },
        "required": ["a", "n", "p"],
        "additionalProperties": False,
    },
    "map": {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 2},
    "old": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "items": [{"type": "null"}],
        "additionalItems": False,
    },
}


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("seed", range(3))
def test_random_tokens_within_the_mask_are_valid_json(name, seed):
    text = walk(GRAMMARS.json_schema(SCHEMAS[name]), TOKENIZER, PADDED, seed)
    value = json.loads(text)
    if name == "map":
        # Keys may come twice; how many there are is then not what was written.
        jsonschema.validate(value, {**SCHEMAS[name], "minProperties": 1})
    else:
        jsonschema.validate(value, SCHEMAS[name])


def test_any_object():
    assert isinstance(json.loads(walk(GRAMMARS.json_object(), TOKENIZER, PADDED, 5)), dict)
    assert not GRAMMARS.json_object().accept(TOKENIZER.encode("[").ids[0])


def test_a_tokenizer_of_pieces_with_byte_fallback():
    tokenizer = sentencepiece()
    size = tokenizer.get_vocab_size()
    grammars = Grammars(tokenizer, size, [2])
    mask = grammars.choice(["日é", "ab"])
    assert 2 not in allowed(mask, size)
    for token in ["<0xE6>", "<0x97>", "<0xA5>", "é"]:
        assert tokenizer.token_to_id(token) in allowed(mask, size) and mask.accept(tokenizer.token_to_id(token))
    assert allowed(mask, size) == [2]


def test_characters_may_be_split_between_tokens():
    mask = GRAMMARS.choice(["𝄞"])
    tokens = TOKENIZER.encode("𝄞").ids
    assert len(tokens) == 4
    for token in tokens:
        assert allowed(mask, PADDED) == [token] and mask.accept(token)


def test_the_end_is_allowed_where_the_text_may_end_and_there_only():
    grammars = Grammars(TOKENIZER, PADDED, [0, 5])
    mask = grammars.regex("ab*")
    a, b = (TOKENIZER.encode(c).ids[0] for c in "ab")
    assert {0, 5}.isdisjoint(allowed(mask, PADDED)) and not mask.accept(5)
    assert mask.accept(a)
    assert {0, 5, b} <= set(allowed(mask, PADDED))
    assert not mask.accept(a)  # and nothing is lost
    assert mask.accept(b) and mask.accept(5)
    full = GRAMMARS.choice(["a"])
    assert full.accept(a) and allowed(full, PADDED) == [0] and not full.accept(b) and full.accept(0)


def test_a_fork_goes_its_own_way():
    mask = GRAMMARS.choice(["ab", "ac"])
    a, b, c = (TOKENIZER.encode(letter).ids[0] for letter in "abc")
    assert mask.accept(a)
    fork = mask.fork()
    assert fork.accept(b) and allowed(fork, PADDED) == [STOP]
    assert mask.accept(c)


def test_regular_expressions_choices_and_grammars():
    assert matches(GRAMMARS.regex(r"a/b\d{2}"), "a/b12") and not matches(GRAMMARS.regex(r"a/b\d{2}"), "a/b1")
    assert matches(GRAMMARS.choice(['say "x"\n', "y"]), 'say "x"\n')
    assert matches(GRAMMARS.grammar('root ::= "a" [0-9]+ ("," "b")?'), "a17,b")
    assert matches(GRAMMARS.grammar('start: "a" NUMBER\nNUMBER: /[0-9]+/'), "a17")


def test_an_answer_after_reasoning():
    assert matches(GRAMMARS.json_schema({"type": "integer"}, thinking=True), 'so {"a"</thin>\n</think>\n\n12')
    assert not matches(GRAMMARS.json_schema({"type": "integer"}, thinking=True), "12")
    special = byte_level(special=["</think>"])
    mask = Grammars(special, special.get_vocab_size(), [STOP]).choice(["a"], thinking=True)
    assert matches(mask, "hm</think>a", special)


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"not": {"type": "string"}}, "not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "object", "propertyNames": {"pattern": "a"}}, "propertyNames"),
        ({"properties": {"a": {"if": {}, "then": {}}}}, '"if", "then"'),
        ({"type": "object", "dependentRequired": {}}, "dependentRequired"),
        ({"type": "string", "format": "shoe-size"}, "shoe-size"),
        ({"type": "integer", "divisibleBy": 2}, "divisibleBy"),
        ({"x-guidance": {"lenient": True}, "not": {}}, "x-guidance"),
        ({"$ref": "http://example.com/x"}, "example.com"),
        ({"$ref": "#/$defs/a"}, r"\$defs/a"),
        ({"type": "strin"}, "strin"),
        ({"type": "string", "pattern": "("}, "regex"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength"),
        (False, "false"),
        ("object", "schema"),
    ],
)
def test_what_cannot_be_guaranteed_is_refused_by_name(schema, named):
    with pytest.raises(UserError, match=f"^json_schema: .*{named}") as error:
        GRAMMARS.json_schema(schema)
    assert "\n" not in str(error.value)


def test_properties_may_have_any_name():
    properties = {"type": {"enum": ["x"]}, "extends": {"type": "string"}, "not": {}, "x-guidance": True}
    schema = {"type": "object", "properties": properties, "required": ["extends"]}
    assert matches(GRAMMARS.json_schema(schema), '{"type": "x", "extends": "a", "not": 1}')


def test_bad_regular_expressions_choices_and_grammars():
    for make, word in [
        (lambda: GRAMMARS.regex("(?=a)"), "regex: .*look-a"),
        (lambda: GRAMMARS.regex("("), "regex"),
        (lambda: GRAMMARS.choice([]), "choice"),
        (lambda: GRAMMARS.choice(["a", ""]), "choice"),
        (lambda: GRAMMARS.grammar("start: nowhere"), "nowhere"),
    ]:
        with pytest.raises(UserError, match=word):
            make()


def test_large_schemas_take_bounded_time():
    many = {f"p{i}": {"type": "string", "pattern": "^[a-z]{3,30}$"} for i in range(1000)}
    deep = {"type": "object"}
    for _ in range(2000):
        deep = {"type": "object", "properties": {"a": deep}}
    start = time.perf_counter()
    GRAMMARS.json_schema({"type": "object", "properties": many, "required": list(many)})
    GRAMMARS.json_schema({"type": "string", "pattern": "((a{1,1000}){1,1000}){1,1000}"})
    for schema in (deep, {"enum": ["x" * 100] * 20_000}):
        with pytest.raises(UserError):
            GRAMMARS.json_schema(schema)
    assert time.perf_counter() - start < 10


PARAMETERS = {
    "type": "object",
    "properties": {
        "s": {"type": "string", "description": "any text"},
        "n": {"type": "integer"},
        "u": {"type": ["string", "null"]},
        "e": {"enum": ["x", "yy"]},
        "o": {"$ref": "#/$defs/o"},
        "p": {"type": "string", "pattern": "^[a-z]{2,4}$"},
        "w": {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "integer"}]},
        "d": {"type": "string", "format": "date"},
    },
    "required": ["s", "n", "o"],
    "$defs": {
        "o": {
            "type": "object",
            "properties": {
                "k": {"type": "array", "items": {"$ref": "#/$defs/o"}, "maxItems": 1},
                "t": {"type": "string"},
            },
            "additionalProperties": False,
        }
    },
}
TOOLS = [
    {"type": "function", "function": {"name": "f", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "no_arguments"}},
    {"type": "function", "function": {"name": "free", "parameters": {"type": "object"}}},
]
SPECIAL = {
    "glm45": ["<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "</think>"],
    "glm47": ["<tool_call>", "</arg_value>"],
    "hermes": ["<tool_call>", "</tool_call>"],
    "deepseek_v32": ["｜DSML｜", "</think>"],
    "deepseek_v31": ["<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"],
    "deepseek_v3": ["<｜tool▁call▁end｜>"],
}


@pytest.mark.parametrize("format", SPECIAL)
@pytest.mark.parametrize("special", [False, True], ids=["plain markers", "special markers"])
def test_random_tokens_are_calls_whose_arguments_fit(format, special):
    tokenizer = byte_level(special=SPECIAL[format] if special else [])
    size = tokenizer.get_vocab_size() + 9
    grammars = Grammars(tokenizer, size, [STOP])
    schemas = {tool["function"]["name"]: tool["function"].get("parameters", {}) for tool in TOOLS}
    for seed in range(1, 4):
        name, parallel, thinking = "f" if seed < 2 else None, seed % 2 == 0, seed == 3
        mask = grammars.tool_calls(TOOLS, format, required_name=name, parallel=parallel, thinking=thinking)
        text = walk(mask, tokenizer, size, seed, steps=60)
        parser = make_parser(format, tools=TOOLS, thinking=thinking)
        calls = []
        for delta in parser.push(text) + parser.finish(truncated=False):
            match delta:
                case ToolStart(_, _, name):
                    calls.append([name, ""])
                case ToolArguments(index, fragment):
                    calls[index][1] += fragment
                case _:
                    assert thinking and isinstance(delta, Reasoning), text
        assert len(calls) == 1 or (calls and parallel), text
        for called, arguments in calls:
            assert called == "f" or seed >= 2
            jsonschema.validate(json.loads(arguments), schemas[called])


def test_tools_that_cannot_be_guaranteed_are_refused():
    def tool(parameters):
        return [{"type": "function", "function": {"name": "t", "parameters": parameters}}]

    text = {"type": "object", "properties": {"a": {"type": "string", "format": "hostname"}}}
    assert GRAMMARS.tool_calls(tool(text), "hermes")
    for make, word in [
        (lambda: GRAMMARS.tool_calls(TOOLS, "hermes", required_name="g"), "'g'"),
        (lambda: GRAMMARS.tool_calls([], "hermes"), "no tools"),
        (lambda: GRAMMARS.tool_calls(TOOLS, None), "None"),
        (lambda: GRAMMARS.tool_calls(tool({"not": {}}), "hermes"), "not"),
        (lambda: GRAMMARS.tool_calls(tool({"type": "object", "minProperties": 1}), "glm45"), "t: .*minProperties"),
        (lambda: GRAMMARS.tool_calls(tool(text), "glm45"), "a: .*hostname"),
        (lambda: GRAMMARS.tool_calls(tool({"type": "array"}), "glm47"), "object"),
    ]:
        with pytest.raises(UserError, match=word):
            make()
