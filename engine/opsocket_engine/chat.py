"""Rendering a conversation with the template that a model's file brings.

A template is a program by a stranger. It runs in Jinja's immutable sandbox, sees plain JSON values only, and reaches no
file, no module and no attribute that begins with an underscore. Bounded: the template's length, the output's length,
all ranges of one rendering together, sequences made by `+`, `*` and `~`, and numbers made by `**`. Not bounded: the
time of nested loops over anything but ranges, and the memory of filters and methods that widen text, such as `center`
or `"%999999999d" | format(0)`. A service that renders strangers' templates does so in a process with limits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from opsocket.operators.errors import ContractError, FormatError
from opsocket_engine.locate import GGUFModel, ModelFiles

MAX_TEMPLATE = 1 << 18
MAX_OUTPUT = 1 << 24
MAX_RANGE_ITEMS = 1 << 17
MAX_DEPTH = 64
_MAX_SEQUENCE = MAX_OUTPUT
_MAX_POWER_BITS = 4096

_WHERE = "chat template"


def load_chat_template(files: ModelFiles) -> str | None:
    """The model's chat template, None where it has none.

    GGUF: tokenizer.chat_template. Hugging Face: chat_template.jinja, else `chat_template` of tokenizer_config.json (of
    several, the one called default).
    """
    if isinstance(files, GGUFModel):
        return _as_template(files, "tokenizer.chat_template", files.file.metadata.get("tokenizer.chat_template"))
    path = files.path / "chat_template.jinja"
    if path.is_file():
        if path.stat().st_size > 4 * MAX_TEMPLATE:
            raise FormatError(path, "size", f"wanted at most {4 * MAX_TEMPLATE} bytes, got {path.stat().st_size}")
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(path, f"byte {error.start}", "no UTF-8") from None
    template = files.json("tokenizer_config.json").get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template") if named else None
    return _as_template(files, "chat_template", template)


def _as_template(files: ModelFiles, key: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise FormatError(files.path, key, f"wanted a string, got {type(value).__name__}")
    return value


def render_chat(
    template: str, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any
) -> str:
    """The prompt that `template` makes of `messages`, each a mapping with at least a `role`.

    add_generation_prompt: end with what opens the assistant's turn. variables: whatever else the template reads, such
    as bos_token, eos_token, tools (None unless given). All values must be JSON's: None, bool, int, float, str, lists
    and mappings with string keys. Tokenize the result with add_special=False and parse_special=True.

    ContractError where a value is none of these or the template itself refuses the conversation; FormatError where the
    template is broken, too large, or reaches for what it may not have.
    """
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ContractError(f"messages[{index}]", "a mapping with a role", message)
    plain = {"tools": None, "documents": None} | {name: _plain(value, name) for name, value in variables.items()}
    plain |= {"messages": _plain(messages, "messages"), "add_generation_prompt": bool(add_generation_prompt)}
    compiled = _compile(template)
    parts: list[str] = []
    length = 0
    try:
        for part in compiled.generate(plain, range=_bounded_range()):
            length += len(part)
            if length > MAX_OUTPUT:
                raise FormatError(_WHERE, "output", f"wanted at most {MAX_OUTPUT} characters, got more")
            parts.append(part)
    except _Refused as error:
        raise ContractError("messages", "a conversation that the chat template takes", str(error)) from None
    except FormatError:
        raise
    except SecurityError as error:
        raise FormatError(_WHERE, "sandbox", str(error)) from None
    except Exception as error:  # a template is a program, and can fail in every way that a program can
        raise FormatError(_WHERE, "rendering", f"{type(error).__name__}: {error}") from None
    return "".join(parts)


@lru_cache(maxsize=8)
def _compile(template: str) -> jinja2.Template:
    if len(template) > MAX_TEMPLATE:
        raise FormatError(_WHERE, "size", f"wanted at most {MAX_TEMPLATE} characters, got {len(template)}")
    try:
        return _environment().from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise FormatError(_WHERE, f"line {error.lineno}", str(error.message)) from None
    except (RecursionError, SyntaxError, MemoryError, ValueError) as error:
        raise FormatError(_WHERE, "syntax", f"{type(error).__name__}: {error}") from None


class _Refused(jinja2.TemplateError):
    """The template called raise_exception."""


class _Concatenation(CodeGenerator):
    """Compiles `~` to a call of the environment, which bounds it."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.concatenate((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**"})
    code_generator_class = _Concatenation

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            return _power(left, right)
        sequences = [side for side in (left, right) if isinstance(side, Sequence)]
        if sequences:
            count = right if sequences[0] is left else left
            longer = len(left) + len(right) if len(sequences) == 2 else len(sequences[0])
            if operator == "*" and isinstance(count, int):
                longer *= max(count, 0)
            _check_length(longer)
        return super().call_binop(context, operator, left, right)

    def concatenate(self, parts: Sequence[Any]) -> str:
        """What `~` makes of its parts."""
        texts = [str(part) for part in parts]
        _check_length(sum(map(len, texts)))
        return "".join(texts)


def _check_length(length: int) -> None:
    if length > _MAX_SEQUENCE:
        raise FormatError(_WHERE, "rendering", f"wanted sequences of at most {_MAX_SEQUENCE}, got one of {length}")


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * exponent > _MAX_POWER_BITS:
        raise FormatError(_WHERE, "rendering", f"wanted powers of at most {_MAX_POWER_BITS} bits")
    return base**exponent


class _Generation(Extension):
    """{% generation %} marks the assistant's part for training; here it has no effect."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Namespace(Namespace):
    """Jinja's, without names that could stand in for Python's own."""

    def __init__(*args: Any, **attributes: Any) -> None:
        self, *positional = args
        attributes = dict(*positional, **attributes)
        for name in attributes:
            _check_attribute(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


def _check_attribute(name: str) -> None:
    if name.startswith("_"):
        raise SecurityError(f"{name!r} begins with an underscore")


@lru_cache(maxsize=1)
def _environment() -> _Environment:
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals = {
        "dict": _new_dict,
        "namespace": _Namespace,
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
    }
    return environment


def _new_dict(*args: Any, **items: Any) -> dict[Any, Any]:
    return dict(*args, **items)


def _raise_exception(message: Any) -> None:
    raise _Refused(str(message))


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own escapes HTML, which is not what models were trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _bounded_range() -> Callable[..., range]:
    left = MAX_RANGE_ITEMS

    def bounded_range(*args: int) -> range:
        nonlocal left
        items = range(*args)
        left -= len(items)
        if left < 0:
            raise FormatError(_WHERE, "rendering", f"wanted ranges of {MAX_RANGE_ITEMS} items altogether, got more")
        return items

    return bounded_range


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    """A copy made of JSON's types alone, so that a template meets no object with methods of its own."""
    if depth > MAX_DEPTH:
        raise ContractError(where, f"values nested at most {MAX_DEPTH} deep", "more")
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if type(key) is not str:
                raise ContractError(where, "mappings with string keys", repr(key))
        return {key: _plain(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(value)]
    raise ContractError(where, "None, bool, int, float, str, a list or a mapping", type(value).__name__)
