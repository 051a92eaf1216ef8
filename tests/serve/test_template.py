from __future__ import annotations

import json
import time

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from inazuma.errors import UserError
from inazuma.serve import sandbox
from inazuma.serve.template import ChatTemplate, opens_thinking

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "a <b> & é", "parameters": PARAMETERS}}]


def call(arguments, name="weather"):
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}


TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather in Ōsaka?"},
    {"role": "assistant", "content": "", "tool_calls": [call('{"city": "Ōsaka", "days": 2}')]},
    {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    {"role": "assistant", "content": "It rains."},
    {"role": "user", "content": "Thanks <3"},
]

CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
HERMES = """\
{%- if tools %}
    {{- '<tools>' }}{% for tool in tools %}{{ tool | tojson }}{% if not loop.last %}, {% endif %}{% endfor %}
    {{- '</tools>' }}
{%- endif %}
{%- for message in messages %}
    {{- '[' ~ message.role ~ ']' ~ message.content }}
    {%- for call in message.tool_calls %}
        {{- '<tool_call>{"name": "' ~ call.function.name ~ '", "arguments": ' }}
        {{- call.function.arguments | tojson ~ '}</tool_call>' }}
    {%- endfor %}
{%- endfor %}"""
GLM = """\
[gMASK]<sop>{% if tools %}{% for tool in tools %}{{ tool | tojson(ensure_ascii=False) }}{% endfor %}{% endif %}
{% for m in messages %}<|{{ m.role }}|>{{ m.content }}
{% for c in m.tool_calls %}<tool_call>{{ c.function.name }}
{% for k, v in c.function.arguments.items() %}
<arg_key>{{ k }}</arg_key>SPACE<arg_value>{{ v | tojson if v is not string else v }}</arg_value>
{% endfor %}</tool_call>{% endfor %}{% endfor %}
{%- if add_generation_prompt %}<|assistant|>{{ '</think>' if enable_thinking is false else '<think>' }}{% endif %}"""
GLM45, GLM47 = GLM.replace("SPACE", "\n"), GLM.replace("SPACE", "")
DEEPSEEK = """\
{{ bos_token }}{% for message in messages %}
    {%- if message['role'] == 'assistant' and message['tool_calls'] is defined %}
        {%- for tool in message['tool_calls'] %}
            {{- '<｜tool▁calls▁begin｜>' + tool['function']['name'] }}
            {{- '<｜tool▁sep｜>' + tool['function']['arguments'] }}
        {%- endfor %}
    {%- else %}{{ '<｜' + message['role'] + '｜>' + message['content'] }}{% endif %}
{%- endfor %}"""
ODD = """\
{%- set ns = namespace(n=0) %}
{%- for message in messages if message.role == 'user' %}
    {%- if loop.index > 2 %}{% break %}{% endif %}
    {%- set ns.n = ns.n + 1 %}
    {%- generation %}{{ message.content | trim | upper }}{% endgeneration %}
{%- endfor %}
{{ ns.n }} {{ 'a,b'.split(',') | join('-') }} {{ '%s=%d' % ('x', 3) }} {{ "{:>3}".format(7) }} {{ [1, 2] + [3] }}
{{ none }} {{ {'b': '<é>', 'a': [1.5, none]} | tojson(indent=2) }} {{ 'x'.replace('x', 'yy') | center(6) }}|
{% macro twice(text) %}{{ text ~ text }}{% endmacro %}{{ twice('ab') | indent(2, true) }} {{ dict(a=1)['a'] }}"""


@pytest.mark.parametrize("source", [CHATML, HERMES, GLM45, GLM47, ODD])
@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_templates_say_what_transformers_makes_of_them(source, tools, add_generation_prompt):
    talk = TALK if "tool_calls" in source else TALK[:2]
    if source == CHATML:
        tools = None  # it has no place for them
    objects = json.loads(json.dumps(talk))
    for message in objects:
        for one in message.get("tool_calls", ()):
            one["function"]["arguments"] = json.loads(one["function"]["arguments"])
    options = {"add_generation_prompt": add_generation_prompt, "enable_thinking": False}
    expected, _ = render_jinja_template([objects], tools, chat_template=source, **options, **TOKENS)
    assert ChatTemplate(source, tokens=TOKENS).render(talk, tools, **options) == expected[0]


def test_arguments_reach_a_template_as_it_needs_them():
    text = ChatTemplate(DEEPSEEK, tokens=TOKENS).render(TALK)
    assert '<｜tool▁sep｜>{"city": "Ōsaka", "days": 2}<｜tool｜>rain' in text and text.startswith("<s>")
    assert '"arguments": {"city"' in ChatTemplate(HERMES).render(TALK)
    assert "<arg_value>2</arg_value>" in ChatTemplate(GLM45).render(TALK)


def test_the_format_is_found_in_the_template():
    for source, format in [
        (GLM45, "glm45"),
        (GLM47, "glm47"),
        (HERMES, "hermes"),
        (CHATML, "hermes"),
        (None, "hermes"),
    ]:
        assert ChatTemplate(source).detect() == format
    assert ChatTemplate(DEEPSEEK).detect() == "deepseek_v31"
    assert ChatTemplate(DEEPSEEK + "{# ```json #}").detect() == "deepseek_v3"
    assert ChatTemplate("{{ tools }}{# <｜DSML｜function_calls> #}").detect() == "deepseek_v32"
    assert ChatTemplate("{{ tools }}[TOOL_CALLS]").detect() is None
    assert ChatTemplate("{{ tools }}<tool_call><function=a>").detect() is None


def test_thinking():
    template = ChatTemplate(GLM47)
    assert template.thinks and not ChatTemplate(CHATML).thinks
    assert opens_thinking(template.render(TALK)) and not opens_thinking(template.render(TALK, enable_thinking=False))
    assert not opens_thinking(template.render(TALK, add_generation_prompt=False))


def test_a_template_without_a_place_for_tools_gets_them_in_words():
    template = ChatTemplate(CHATML)
    text = template.render(TALK, TOOLS)
    _, system, _, assistant, result, *_ = text.split("<|im_start|>")
    assert system.startswith("system\nBe brief.\n\n") and '"name": "weather"' in system and "<tool_call>" in system
    written = '{"name": "weather", "arguments": {"city": "Ōsaka", "days": 2}}'
    assert assistant == f"assistant\n<tool_call>\n{written}\n</tool_call><|im_end|>\n"
    assert result == "user\n<tool_response>\nrain\n</tool_response><|im_end|>\n"
    # Without tools in this request, earlier calls are still there.
    assert "<tool_response>" in template.render(TALK) and "<tools>" not in template.render(TALK)
    # No system message of one's own; two results go into one message.
    two = [*TALK[1:4], TALK[3]]
    text = template.render(two, TOOLS)
    assert text.startswith("<|im_start|>system\nYou can call") and text.count("<|im_start|>user") == 2
    # DeepSeek-V3.1's writes earlier calls and has no place for tools.
    assert "<tool_call>" not in ChatTemplate(DEEPSEEK).render(TALK, TOOLS)
    assert "name<｜tool▁sep｜>" in ChatTemplate(DEEPSEEK).render(TALK, TOOLS)


def test_no_template():
    assert ChatTemplate(None).render([{"role": "user", "content": "Once upon"}]) == "Once upon"
    assert ChatTemplate(None).render(TALK[:2]) == "Be brief.\n\nWeather in Ōsaka?"


def test_continuing_the_last_message():
    talk = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "Once "}]
    for source in (CHATML, HERMES, None):
        text = ChatTemplate(source).render(talk, continue_final_message=True)
        assert (text.endswith("Once ") and "<|im_end|>\n<|im_start|>assistant" in text) or source != CHATML
    trimmed = CHATML.replace("message['content']", "message['content'] | trim")
    assert ChatTemplate(trimmed).render(talk, continue_final_message=True).endswith("assistant\nOnce ")
    with pytest.raises(UserError, match="continue"):
        ChatTemplate(CHATML).render([{"role": "user", "content": ""}], continue_final_message=True)


def test_contents_and_roles():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    template = ChatTemplate(CHATML)
    assert "a\nb" in template.render([{"role": "user", "content": parts}])
    assert "<|im_start|>system\nx" in template.render([{"role": "developer", "content": "x"}])
    # What OpenAI's client sends back.
    message = {"role": "assistant", "content": None, "refusal": None, "tool_calls": None, "audio": None}
    assert template.render([message], add_generation_prompt=False) == "<|im_start|>assistant\n<|im_end|>\n"


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "user", "content": [{"type": "text", "text": ""}, {"type": "image_url"}]}, r"\[1\]: .*'image_url'"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "'input_audio'"),
        ({"role": "user", "content": 5}, "neither"),
        ({"role": "user", "content": [{"type": "text"}]}, "no text"),
        ({"content": "a"}, "role"),
        ("hello", "role"),
        ({"role": "assistant", "tool_calls": [call('{"a": ')]}, r"tool_calls\[0\].function.arguments: is not JSON"),
        ({"role": "assistant", "tool_calls": [call("[1]")]}, "not a JSON object"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "function name"),
    ],
)  # fmt: skip
def test_malformed_messages(message, said):
    with pytest.raises(UserError, match=f"^messages.*{said}"):
        ChatTemplate(HERMES).render([message])


def test_a_folder(tmp_path):
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": False, "pad_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert ChatTemplate.load(tmp_path).source is None
    config["chat_template"] = "{{ bos_token }}one"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert ChatTemplate.load(tmp_path).render(TALK[:1]) == "<s>one"
    named = {"default": "plain", "tool_use": "{{ tools | length }} tools"}
    config["chat_template"] = [{"name": name, "template": template} for name, template in named.items()]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    template = ChatTemplate.load(tmp_path)
    assert (template.render(TALK[:1]), template.render(TALK[:1], TOOLS)) == ("plain", "1 tools")
    (tmp_path / "chat_template.jinja").write_text("file", encoding="utf-8")
    assert ChatTemplate.load(tmp_path).render(TALK[:1]) == "file"


def test_deepseek_v32_is_known_by_its_type_and_vocabulary(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "deepseek_v32"}')
    (tmp_path / "tokenizer.json").write_text('{"added_tokens": [{"content": "<|endoftext|>"}]}')
    assert ChatTemplate.load(tmp_path).encoding is None
    tokens = [{"content": "<｜User｜>"}, {"content": "<｜Assistant｜>"}]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    template = ChatTemplate.load(tmp_path)
    assert template.detect() == "deepseek_v32" and template.thinks and template.takes_tools


def test_deepseek_v32():
    """Against what `encoding_dsv32.py` of DeepSeek-V3.2 gives for such messages."""
    template = ChatTemplate(None, encoding="deepseek_v32")
    begin = "<｜begin▁of▁sentence｜>"
    hello = [{"role": "user", "content": "hello"}]
    assert template.render(hello) == f"{begin}<｜User｜>hello<｜Assistant｜></think>"
    assert template.render(hello, thinking=True) == f"{begin}<｜User｜>hello<｜Assistant｜><think>"
    earlier = [
        *hello,
        {"role": "assistant", "content": "Hi!", "reasoning_content": "so"},
        {"role": "user", "content": "1+1"},
    ]
    assert template.render(earlier, enable_thinking=True) == (
        f"{begin}<｜User｜>hello<｜Assistant｜></think>Hi!<｜end▁of▁sentence｜><｜User｜>1+1<｜Assistant｜><think>"
    )
    asked = [TALK[0], TALK[1], TALK[2] | {"reasoning_content": "look"}, TALK[3]]
    text = template.render(asked, TOOLS, thinking=True)
    head, tail = text.split("<｜User｜>")
    assert head.startswith(f"{begin}Be brief.\n\n## Tools\n\nYou have access") and head.endswith("\n</functions>\n")
    assert json.dumps(TOOLS[0]["function"], ensure_ascii=False) in head
    assert tail == (
        "Weather in Ōsaka?<｜Assistant｜><think>look</think>\n\n<｜DSML｜function_calls>\n"
        '<｜DSML｜invoke name="weather">\n<｜DSML｜parameter name="city" string="true">Ōsaka</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="days" string="false">2</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
        "</｜DSML｜function_calls><｜end▁of▁sentence｜>\n\n<function_results>\n<result>rain</result>\n</function_results>"
        "\n\n<think>"
    )
    assert template.render(hello, TOOLS).startswith(f"{begin}\n\n## Tools")
    assert template.render(earlier[:2], continue_final_message=True).endswith("</think>Hi!")
    with pytest.raises(UserError, match="colour"):
        template.render(hello, colour=1)
    with pytest.raises(UserError, match="'robot'"):
        template.render([{"role": "robot", "content": ""}])


LARGE = "{% set b = 'a' * 10000000 %}"
LOOP = "{% for i in range(90000) %}{% for j in range(90000) %}X{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    "source",
    [
        LOOP.replace("X", ""),
        LOOP.replace("X", "x" * 1000),
        "{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(x=2) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
        "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
        LARGE + "{% set x %}{% for i in range(90000) %}{{ b }}{% endfor %}{% endset %}",
        LARGE + "{{ ([b] * 100000) | join }}",
        LARGE + "{{ ''.join([b] * 100000) }}",
        LARGE + "{{ [b] * 100000 }}",
        LARGE + "{{ ([b] * 100000) | tojson }}",
        LARGE + "{{ b.replace('a', b) }}",
        LARGE + "{{ b | replace('a', b) }}",
        "{{ 'a' * 10000000000 }}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ '%9999999999d' | format(1) }}",
        "{{ '{:>9999999999}'.format(1) }}",
        "{{ '{:>{}}'.format(1, 9999999999) }}",
        "{{ 'a'.ljust(9999999999) }}",
        "{{ 'a' | center(9999999999) }}",
        "{{ 'a' | indent(9999999999, true) }}",
        "{{ [1] | slice(9999999999) | list }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{" + "(" * 5000,
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
    ],
)
def test_templates_keep_within_bounds(source, monkeypatch):
    monkeypatch.setattr(sandbox, "STEPS", 100_000)
    start = time.perf_counter()
    with pytest.raises(UserError, match=r"^the model's chat template: ") as error:
        ChatTemplate(source).render(TALK[:1])
    assert time.perf_counter() - start < 3
    assert "\n" not in str(error.value) and "MemoryError" not in str(error.value)


def test_what_a_template_says_is_one_line():
    with pytest.raises(UserError, match=r"^the model's chat template: roles must alternate$"):
        ChatTemplate("{{ raise_exception('roles must\n alternate') }}").render(TALK)
    with pytest.raises(UserError, match="line 2"):
        ChatTemplate("\n{% if %}").render(TALK)
    with pytest.raises(UserError, match="undefined"):
        ChatTemplate("{{ a.b.c }}").render(TALK)
    with pytest.raises(UserError, match="none"):
        ChatTemplate(CHATML).render([])
