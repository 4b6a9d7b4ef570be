"""The runtime's configuration: one table of options, and for every value where it came from.

Order, strongest first: argument, flag, environment, file, default. A file is one of: the one named by `--config` or
`OPSOCKET_CONFIG`, `opsocket.yaml` in the working directory, `opsocket/config.yaml` in the user's configuration folder;
the first that is there is the only one read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Self, get_args

from opsocket import operators
from opsocket.operators import FLOAT_DTYPES, ContractError, KVFormat, Spec
from opsocket.operators.layout import KVCode
from opsocket.runtime.kinds import Choice, Count, Flag, Kind, Names, Table, Text, Wrong

Source = Literal["argument", "flag", "environment", "file", "default"]


@dataclass(frozen=True)
class Origin:
    """Where a value came from. where: the argument, flag or variable, or path:line:column; "" for a default."""

    source: Source
    where: str = ""

    def __str__(self) -> str:
        return f"{self.source} {self.where}".rstrip()


def _option(default: Any, kind: Kind, help: str, environment: str | None = None) -> Any:
    return field(default_factory=lambda: default, metadata={"kind": kind, "help": help, "environment": environment})


def operator_names() -> tuple[str, ...]:
    """Every operator of the interface, by name."""
    public = [getattr(operators, name) for name in operators.__all__]
    return tuple(sorted(s.op for s in public if isinstance(s, type) and issubclass(s, Spec) and s is not Spec))


def _kv_formats() -> tuple[str, ...]:
    """Codes, alone or with scales that are computed on write: "f16", "i8", "i8/token_head", ..."""
    formats: list[str] = list(get_args(KVCode))
    for code in get_args(KVCode):
        with contextlib.suppress(ContractError):
            formats.append(f"{KVFormat(code, 'token_head').code}/token_head")
    return tuple(formats)


_FLAGS = {"operators": "--pin"}
_PROVIDER = Text(r"([a-z][a-z0-9_]*/)?[a-z][a-z0-9_]*", "a provider such as 'torch' or 'cpu/torch'")


@dataclass(frozen=True)
class PluginsConfig:
    allow: tuple[str, ...] | None = _option(
        None,
        Names(),
        "Plugins or distributions that may be imported; null: all that are installed.",
        "OPSOCKET_PLUGINS",
    )


@dataclass(frozen=True)
class EngineConfig:
    """What the engine takes; null: the engine's own choice."""

    max_batch: int | None = _option(None, Count(), "Sequences in one step.")
    max_tokens: int | None = _option(None, Count(), "Tokens in one step: longer prompts are prefilled in chunks.")
    block_size: int | None = _option(None, Count(), "Tokens in one block of the KV cache.")
    num_blocks: int | None = _option(None, Count(), "Blocks of the KV cache.")
    kv_format: str | None = _option(None, Choice(_kv_formats(), optional=True), "How keys and values are stored.")
    dtype: str | None = _option(None, Choice(FLOAT_DTYPES, optional=True), "Type of the activations.")
    activations: str | None = _option(
        None,
        Choice(("none", "i8_token", "i8_g32"), optional=True),
        "What activations are multiplied as: themselves, or int8 codes with a scale for each token or 32 columns.",
    )
    numerics: str | None = _option(
        None,
        Choice(("exact", "fast"), optional=True),
        "What kernels may do inside: nothing that loses, or what matrix units do in the activations' type.",
    )
    capture: bool | None = _option(None, Flag(), "Whether decode steps and full ones are recorded once and replayed.")
    replay_steps: int | None = _option(None, Count(), "Decode steps that one replay runs where all are greedy.")


@dataclass(frozen=True)
class RuntimeConfig:
    """backend: "auto", a name, or name:index. operators: operator -> the only provider that may serve it, "cpu/torch"
    where it holds for one backend. checked: see `SessionOptions`. origins: for each dotted key, where its value came
    from.
    """

    backend: str = _option(
        "auto", Text(r"[a-z][a-z0-9_]*(:[0-9]{1,4})?", "a backend such as 'cpu', 'cuda:1' or 'auto'"), "What to run on."
    )
    operators: Mapping[str, str] = _option(
        {}, Table(operator_names(), _PROVIDER), "The only provider that may serve an operator."
    )
    plugins: PluginsConfig = PluginsConfig()
    threads: int | None = _option(None, Count(), "Host threads; null: the backend's choice.")
    checked: Literal["shapes", "deep"] = _option(
        "shapes", Choice(("shapes", "deep")), "deep: also check what only the device knows, which synchronizes."
    )
    tuned: bool = _option(True, Flag(), "Whether what `opsocket tune` found fastest on this machine is asked first.")
    fallback: Literal["error"] = _option(
        "error",
        Choice(("error",), planned={"reference": "falling back to a reference is not built in this version"}),
        "What to do where no kernel serves a request.",
    )
    engine: EngineConfig = EngineConfig()
    origins: Mapping[str, Origin] = field(default_factory=dict)

    @classmethod
    def of(cls, layers: list[dict[str, Setting]]) -> Self:
        """Merge layers, the strongest first; keys are those of `options()`, and "operators.<op>" for pins."""
        merged: dict[str, Setting] = {}
        for layer in layers:
            for key, setting in layer.items():
                merged.setdefault(key, setting)
        values = {key: setting.value for key, setting in merged.items()}
        origins = {key: setting.origin for key, setting in merged.items()}
        return cls(**_arguments(cls, values, ""), origins=origins)

    def override(self, source: Source, values: Mapping[str, object]) -> Self:
        """The same configuration with some values replaced, e.g. by a command's own flags; keys are dotted."""
        kept = {key: Setting(value, origin) for key, value, origin in self.items() if origin.source != "default"}
        return self.of([given(source, values), kept])

    def values(self) -> dict[str, Any]:
        """What is set, without the defaults, as `override` takes it: tables are whole."""
        found: dict[str, Any] = {}
        for key, value, origin in self.items():
            if origin.source == "default":
                continue
            table = next((o.key for o in options() if isinstance(o.kind, Table) and key.startswith(f"{o.key}.")), None)
            if table is None:
                found[key] = value
            else:
                found.setdefault(table, {})[key.removeprefix(f"{table}.")] = value
        return found

    def items(self) -> Iterator[tuple[str, Any, Origin]]:
        """Every dotted key with its value and its origin, in the order of the table."""
        for option in options():
            value: Any = self
            for part in option.key.split("."):
                value = getattr(value, part)
            if isinstance(option.kind, Table) and value:
                for key in value:
                    yield f"{option.key}.{key}", value[key], self.origins[f"{option.key}.{key}"]
            else:
                yield option.key, value, self.origins.get(option.key, Origin("default"))

    def origin(self, key: str) -> Origin:
        """Where the value of a dotted key came from."""
        return self.origins.get(key, Origin("default"))

    def pins_for(self, backend: str) -> dict[str, str]:
        """operator -> provider for one backend: the pins that name no backend, and those that name this one."""
        split = {op: pin.rpartition("/") for op, pin in self.operators.items()}
        return {op: provider for op, (owner, _, provider) in split.items() if owner in ("", backend)}


class Option(NamedTuple):
    """One row of the table. key: dotted. environment: the variable that sets it."""

    key: str
    kind: Kind
    default: Any
    help: str
    environment: str


class Setting(NamedTuple):
    value: Any
    origin: Origin


@functools.cache
def options() -> tuple[Option, ...]:
    """The table: every option there is."""
    return tuple(_options_of(RuntimeConfig, ""))


def _options_of(section: type, prefix: str) -> Iterator[Option]:
    defaults = section()
    for f in dataclasses.fields(section):
        default = getattr(defaults, f.name)
        if dataclasses.is_dataclass(default):
            yield from _options_of(type(default), f"{prefix}{f.name}.")
        elif f.metadata:
            key = prefix + f.name
            variable = f.metadata["environment"] or "OPSOCKET_" + key.upper().replace(".", "_")
            yield Option(key, f.metadata["kind"], default, f.metadata["help"], variable)


def option(key: str) -> Option:
    """The row of one dotted key."""
    return next(o for o in options() if o.key == key)


def expand(option: Option, value: Any, origin: Origin) -> dict[str, Setting]:
    """A checked value as settings: one, or one for each entry of a table."""
    if isinstance(option.kind, Table):
        return {f"{option.key}.{key}": Setting(item, origin) for key, item in value.items()}
    return {option.key: Setting(value, origin)}


def given(source: Source, values: Mapping[str, object], where: Mapping[str, str] | None = None) -> dict[str, Setting]:
    """Settings from a program's arguments or a command's flags. where: dotted key -> what the person wrote."""
    layer: dict[str, Setting] = {}
    for key, value in values.items():
        origin = Origin(source, (where or {}).get(key, key))
        try:
            layer |= expand(option(key), option(key).kind.read(value), origin)
        except Wrong as wrong:
            raise ContractError(str(origin), wrong.want, repr(wrong.got)) from None
    return layer


def from_environment(environment: Mapping[str, str]) -> dict[str, Setting]:
    """Settings from `OPSOCKET_*` variables; an empty variable counts as not set."""
    found = [option for option in options() if environment.get(option.environment)]
    values = {option.key: environment[option.environment] for option in found}
    return given("environment", values, {option.key: option.environment for option in found})


def load_config(
    path: str | os.PathLike[str] | None = None,
    *,
    arguments: Mapping[str, object] | None = None,
    flags: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
) -> RuntimeConfig:
    """The configuration of this process. path: a file to read instead of looking for one. Keys are dotted.

    `ContractError` names the argument, flag or variable at fault, `FormatError` the file, line and column.
    """
    from opsocket.runtime.files import find_file, from_file

    environment = os.environ if environment is None else environment
    file = find_file(path, environment)
    return RuntimeConfig.of(
        [
            given("argument", arguments or {}),
            given("flag", flags or {}, {key: _FLAGS.get(key, f"--{key}") for key in flags or {}}),
            from_environment(environment),
            {} if file is None else from_file(file),
        ]
    )


def _arguments(section: type, values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The constructor's arguments of one section, from dotted keys; a value that no layer gives keeps its default."""
    arguments: dict[str, Any] = {}
    for f in dataclasses.fields(section):
        key, kind = prefix + f.name, f.metadata.get("kind")
        if isinstance(kind, Table):
            arguments[f.name] = {k.removeprefix(f"{key}."): v for k, v in values.items() if k.startswith(f"{key}.")}
        elif kind is not None:
            arguments |= {f.name: values[key]} if key in values else {}
        elif isinstance(f.default, PluginsConfig | EngineConfig):
            arguments[f.name] = type(f.default)(**_arguments(type(f.default), values, f"{key}."))
    return arguments
