"""Chat templates: rendered as transformers renders them, and shut in."""

from __future__ import annotations

import json
import time
from datetime import datetime

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from opsocket.operators.errors import ContractError, FormatError
from opsocket_engine.chat import MAX_TEMPLATE, load_chat_template, render_chat
from opsocket_engine.locate import HuggingFaceFolder, locate

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": 'What is <b>"5 > 3"</b> & why?'},
    {"role": "assistant", "content": "True."},
    {"role": "user", "content": "naïve 🙂"},
]

LLAMA3_LIKE = """{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}"""

TOOLS = """{%- if tools %}
{% for tool in tools %}{{ tool | tojson }} {{ tool | tojson(indent=2) }}
{% endfor %}{% endif %}
{%- set ns = namespace(last=-1, roles=[]) %}
{%- for message in messages[::-1] %}
{%- if message.role == 'system' %}{% continue %}{% endif %}
{%- set ns.last = loop.index0 %}
{{- message.role ~ ':' ~ message.content.split(' ')[0] ~ '|' }}
{%- if loop.index > 2 %}{% break %}{% endif %}
{%- endfor %}
{{- dict(a=1).a }} {{ range(3) | list }} {{ 7 * 6 }} {{ 2 ** 10 }} {{ [1] + [2] }} {{ 'ab' * 2 }}
{{- documents is none }}"""

INDENTED = """
{% for m in messages %}
    {% if m.role == 'user' %}
        {{ m.content }}
    {% else %}
    [{{ m.role }}]
    {% endif %}
{% endfor %}
"""

GENERATION = "{% for m in messages %}{% generation %}{{ m.content }}\n{% endgeneration %}{% endfor %}"


@pytest.mark.parametrize("template", [LLAMA3_LIKE, TOOLS, INDENTED, GENERATION])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_templates_render_as_transformers_renders_them(template, add_generation_prompt):
    tools = [{"type": "function", "function": {"name": "add", "description": "<x> & 'y' é"}}]
    want, _ = render_jinja_template(
        [CONVERSATION], tools, None, template, add_generation_prompt=add_generation_prompt, bos_token="<s>"
    )
    got = render_chat(template, CONVERSATION, add_generation_prompt, tools=tools, bos_token="<s>")
    assert got == want[0]


def test_smollm2_brings_a_template_that_renders_as_transformers_renders_it():
    template = load_chat_template(locate("smollm2"))
    want, _ = render_jinja_template([CONVERSATION[1:]], None, None, template, add_generation_prompt=True)
    assert render_chat(template, CONVERSATION[1:]) == want[0]
    assert want[0].endswith("<|im_start|>assistant\n")


def test_the_clock_is_the_real_one():
    assert render_chat("{{ strftime_now('%Y') }}", CONVERSATION) == str(datetime.now().year)


def test_a_folder_template_is_found_in_each_of_its_places(tmp_path):
    files = HuggingFaceFolder("m", tmp_path)
    assert load_chat_template(files) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "plain"}))
    assert load_chat_template(files) == "plain"
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert load_chat_template(files) == "yes"
    config.write_text(json.dumps({"chat_template": 5}))
    with pytest.raises(FormatError, match="chat_template: wanted a string, got int"):
        load_chat_template(files)
    (tmp_path / "chat_template.jinja").write_text("file {{ 1 }}", encoding="utf-8")
    assert load_chat_template(files) == "file {{ 1 }}"
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(FormatError, match="no UTF-8"):
        load_chat_template(files)


@pytest.mark.parametrize(
    "expression",
    [
        "''.__class__.__mro__[1].__subclasses__()",
        "messages.__class__.__base__.__subclasses__()",
        "messages['__class__'].__base__",
        "messages | attr('__class__') | attr('__base__')",
        "[messages] | map(attribute='__class__') | list",
        "'{0.__class__.__mro__}'.format(1)",
        "'{x.__globals__}'.format_map({'x': raise_exception})",
        "raise_exception.__globals__['__builtins__']",
        "strftime_now.__code__.co_consts",
        "range.__closure__",
        "dict.mro()",
        "namespace.__init__.__globals__",
        "namespace.mro()",
        "namespace(x=1).__class__",
        "self.__init__.__globals__",
        "self._TemplateReference__context",
        "lipsum.__globals__['os'].popen('id')",
        "cycler.__init__.__globals__.os",
        "(1).__class__.__base__.__subclasses__()",
        "messages.append.__self__.__class__",
        "loop.__class__",
    ],
)
def test_an_expression_that_reaches_for_python_gets_nothing(expression):
    # An internal attribute is undefined: it prints as nothing, and any use of it is an error.
    try:
        shown = render_chat("{{ " + expression + " }}", CONVERSATION)
    except FormatError:
        return
    assert shown in ("", "[Undefined]")


@pytest.mark.parametrize(
    "template",
    [
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os }}",
        "{% extends 'base' %}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'a': 1}) }}",
        "{{ messages.clear() }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{% set ns = namespace(_Namespace__attrs=1) %}",
        "{% set ns = namespace(**{'__html__': raise_exception}) %}",
    ],
)
def test_a_template_that_reaches_out_or_changes_its_arguments_is_refused(template):
    messages = [dict(message) for message in CONVERSATION]
    with pytest.raises(FormatError):
        render_chat(template, messages)
    assert messages == CONVERSATION


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(10 ** 30) %}{% endfor %}",
        "{{ 'a' * 10 ** 10 }}",
        "{{ [1] * 10 ** 10 }}",
        "{{ 9 ** (9 ** 9) }}",
        "{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% for i in range(9000) %}{{ 'a' * 9000 }}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_template_that_grows_without_end_is_stopped(template):
    start = time.perf_counter()
    with pytest.raises(FormatError):
        render_chat(template, CONVERSATION)
    assert time.perf_counter() - start < 5


def test_a_large_template_is_refused_before_it_is_compiled():
    with pytest.raises(FormatError, match="size: wanted at most"):
        render_chat("{{ 1 }}" * (MAX_TEMPLATE // 7 + 1), CONVERSATION)
    with pytest.raises(FormatError, match="chat template"):
        render_chat("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", CONVERSATION)


def test_a_broken_template_is_told_by_its_line():
    with pytest.raises(FormatError, match="line 2"):
        render_chat("{{ 1 }}\n{% for %}", CONVERSATION)
    with pytest.raises(FormatError, match="rendering: TypeError"):
        render_chat("{{ messages[0].content + 5 }}", CONVERSATION)


def test_a_template_that_refuses_the_conversation_says_so_in_its_words():
    with pytest.raises(ContractError, match="got roles must alternate"):
        render_chat("{{ raise_exception('roles must alternate') }}", CONVERSATION)


@pytest.mark.parametrize(
    "messages",
    [[{"content": "x"}], [{"role": 5}], ["text"], [{"role": "user", "content": object()}], [{"role": "u", 1: 2}]],
)
def test_messages_of_another_kind_are_refused(messages):
    with pytest.raises(ContractError, match="messages"):
        render_chat("x", messages)


def test_values_without_end_are_refused():
    loop: list = []
    loop.append(loop)
    with pytest.raises(ContractError, match="nested at most"):
        render_chat("x", [{"role": "user", "content": loop}])
