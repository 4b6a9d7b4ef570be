"""The configuration: which source wins, where each value came from, and what is refused with which words."""

from __future__ import annotations

import contextlib
import json
import os

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opsocket import ContractError, FormatError
from opsocket.runtime import load_config
from opsocket.runtime.config import RuntimeConfig, options

NOWHERE = {"XDG_CONFIG_HOME": os.devnull}
VARIABLE = {option.key: option.environment for option in options()}
VALUES = {
    "backend": st.sampled_from(["cpu", "cuda:1", "auto"]),
    "threads": st.integers(1, 64),
    "checked": st.sampled_from(["shapes", "deep"]),
    "operators": st.dictionaries(
        st.sampled_from(["attention", "matmul"]), st.sampled_from(["torch", "cpu/native"]), min_size=1
    ),
    "plugins.allow": st.lists(st.sampled_from(["cpu", "mychip"]), min_size=1),
    "engine.block_size": st.sampled_from([16, 32]),
    "engine.capture": st.booleans(),
    "engine.kv_format": st.sampled_from(["f16", "i8/token_head"]),
}
PROFILE = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
LAYER = st.fixed_dictionaries({}, optional=VALUES)


@pytest.fixture
def write(tmp_path):
    """Write a configuration file and give its path."""

    def write(text: str):
        path = tmp_path / "opsocket.yaml"
        path.write_text(text)
        return path

    return write


def as_text(value) -> str:
    if isinstance(value, dict):
        return ",".join(f"{key}={item}" for key, item in value.items())
    return ",".join(value) if isinstance(value, list) else str(value)


def as_yaml(layer: dict) -> str:
    nested: dict = {}
    for key, value in layer.items():
        section, _, name = key.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = value
    return yaml.safe_dump(nested)


def flat(layer: dict) -> dict:
    """A layer with one entry for each pin, as `RuntimeConfig.items` has it."""
    pins = {f"operators.{op}": pin for op, pin in layer.get("operators", {}).items()}
    plain = {key: tuple(v) if isinstance(v, list) else v for key, v in layer.items() if key != "operators"}
    return plain | pins


@settings(PROFILE, max_examples=60)
@given(argument=LAYER, flag=LAYER, environment=LAYER, file=LAYER)
def test_the_strongest_source_that_gives_a_value_wins(write, argument, flag, environment, file):
    path = write(as_yaml(file))
    variables = {VARIABLE[key]: as_text(value) for key, value in environment.items()}
    config = load_config(path, arguments=argument, flags=flag, environment=variables)
    layers = [("argument", argument), ("flag", flag), ("environment", environment), ("file", file)]
    seen = {key: (value, origin.source) for key, value, origin in config.items()}
    for source, layer in reversed(layers):
        for key, value in flat(layer).items():
            stronger = [other for name, other in layers[: [n for n, _ in layers].index(source)] if key in flat(other)]
            if not stronger:
                assert seen.pop(key) == (value, source)
    assert {source for _, source in seen.values()} <= {"default"}


def test_every_value_says_where_it_came_from(write):
    path = write("backend: cpu\nengine:\n  block_size: 32\noperators:\n  matmul: cpu/torch\n")
    environment = {"OPSOCKET_THREADS": "3", **NOWHERE}
    config = load_config(path, flags={"operators": "attention=torch"}, environment=environment)
    origins = {key: str(origin) for key, _, origin in config.items()}
    assert origins["backend"] == f"file {path}:1:10"
    assert origins["engine.block_size"] == f"file {path}:3:15"
    assert origins["operators.matmul"] == f"file {path}:5:11"
    assert origins["operators.attention"] == "flag --pin"
    assert origins["threads"] == "environment OPSOCKET_THREADS"
    assert origins["checked"] == "default"


def test_overriding_keeps_the_other_values_and_their_origins(write):
    before = load_config(write("threads: 2\nengine: {max_batch: 4}\n"), environment={})
    after = before.override("flag", {"engine.max_batch": 8})
    assert (after.threads, after.engine.max_batch) == (2, 8)
    assert after.origin("threads") == before.origin("threads")
    assert str(after.origin("engine.max_batch")) == "flag engine.max_batch"


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        ("threads: 1\nbakend: cpu\n", "line 2, column 1", "unknown key 'bakend'; did you mean 'backend'?"),
        (
            "engine:\n  blok_size: 3\n",
            "line 2, column 3",
            "unknown key 'blok_size' of 'engine'; did you mean 'block_size'?",
        ),
        ("engine: {xyz: 3}\n", "line 1, column 10", "known: activations, block_size, capture, dtype"),
        ("operators: {atention: torch}\n", "line 1, column 13", "did you mean 'attention'?"),
        ("operators:\n  matmul: 3\n", "line 2, column 11", "operators.matmul: wanted a provider such as 'torch'"),
        ("threads: two\n", "line 1, column 10", "wanted a whole number of at least 1, got 'two'"),
        ("threads: 0\n", "line 1, column 10", "at least 1, got 0"),
        ("threads: true\n", "line 1, column 10", "got the boolean true"),
        ("backend: no\n", "line 1, column 10", "write text in quotes"),
        ("backend: CUDA\n", "line 1, column 10", "wanted a backend such as"),
        ("backend: 2020-01-01\n", "line 1, column 10", "YAML reads this as a timestamp"),
        ("engine: 3\n", "line 1, column 9", "engine: wanted a mapping, got 3"),
        ("engine: {dtype: f8}\n", "line 1, column 17", "one of f32, bf16, f16, got 'f8'"),
        ("plugins: {allow: cpu}\n", "line 1, column 18", "wanted a list of names, got 'cpu'"),
        ("plugins: {allow: [cpu, 3]}\n", "line 1, column 24", "wanted a name, got 3"),
        ("fallback: reference\n", "line 1, column 11", "not built in this version"),
        ("threads: 1\nthreads: 2\n", "line 2, column 1", "key 'threads' stands twice, first at line 1, column 1"),
        ("- cpu\n", "line 1, column 1", "wanted a mapping of options, got a list"),
        ("3: cpu\n", "line 1, column 1", "a key must be plain text"),
        ("backend: [cpu\n", "line 2, column 1", "is not YAML"),
        ("backend: cpu\n---\nbackend: cpu\n", "line 2, column 1", "is not YAML"),
        ("\tbackend: cpu\n", "line 1, column 1", "is not YAML"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_line(write, text, where, words):
    path = write(text)
    with pytest.raises(FormatError) as caught:
        load_config(path, environment={})
    assert caught.value.path == str(path)
    assert caught.value.where == where
    assert words in caught.value.problem


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: &x [1, 2]\nb: *x\n", "anchors and aliases are not taken"),
        (b"a: &a [*a]\n", "anchors and aliases are not taken"),
        (b"&x backend: cpu\n", "anchors and aliases are not taken"),
        (b"backend: !!python/object/apply:os.system [ls]\n", "tags are not taken"),
        (b"backend: !x cpu\n", "tags are not taken"),
        (b"[" * 50_000, "nested deeper"),
        (b"a: " + b"{a: " * 20, "nested deeper"),
        (b"x" * 70_000, "larger than the 65536 bytes"),
        (b"backend: \xff\xfe\n", "not UTF-8"),
        (b"backend: \x00\n", "is not YAML"),
        (b"threads: " + b"9" * 10_000, "is no int"),
        (b"threads: 0x_\n", "is no int"),
    ],
)
def test_a_hostile_file_is_refused(tmp_path, content, words):
    path = tmp_path / "opsocket.yaml"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=words):
        load_config(path, environment={})


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.one_of(st.binary(max_size=60), st.text(alphabet="ab:{}[]&*!|>-'\"\n\t #,?x0", max_size=40).map(str.encode)))
def test_any_bytes_are_a_configuration_or_a_format_error(tmp_path, content):
    path = tmp_path / "opsocket.yaml"
    path.write_bytes(content)
    with contextlib.suppress(FormatError):
        assert load_config(path, environment={}).backend


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}\n", "plugins: {}\n", "---\n"])
def test_an_empty_file_sets_nothing(write, text):
    assert {o.source for _, _, o in load_config(write(text), environment={}).items()} == {"default"}


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"OPSOCKET_THREADS": "many"}, "environment OPSOCKET_THREADS: wanted a whole number"),
        ({"OPSOCKET_BACKEND": "no such thing"}, "environment OPSOCKET_BACKEND: wanted a backend"),
        ({"OPSOCKET_OPERATORS": "matmul"}, "environment OPSOCKET_OPERATORS: wanted key=value pairs"),
        ({"OPSOCKET_OPERATORS": "matmull=torch"}, "environment OPSOCKET_OPERATORS: wanted one of add"),
        ({"OPSOCKET_FALLBACK": "reference"}, "not built in this version"),
    ],
)
def test_a_wrong_variable_is_named(variables, words):
    with pytest.raises(ContractError, match=words):
        load_config(environment={**NOWHERE, **variables})


def test_a_wrong_argument_is_named():
    with pytest.raises(ContractError, match="argument threads: wanted a whole number of at least 1, got -1"):
        load_config(arguments={"threads": -1}, environment=NOWHERE)


@pytest.mark.parametrize(("text", "allow"), [("", None), ("none", ()), ("cpu, mychip", ("cpu", "mychip"))])
def test_the_plugins_variable(text, allow):
    assert load_config(environment={"OPSOCKET_PLUGINS": text, **NOWHERE}).plugins.allow == allow


def test_where_the_file_is_looked_for(tmp_path, monkeypatch):
    work, home = tmp_path / "work", tmp_path / "home"
    places = [tmp_path / "flag.yaml", tmp_path / "variable.yaml", work / "opsocket.yaml", home / "opsocket/config.yaml"]
    for threads, place in enumerate(places, 1):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"threads: {threads}\n")
    monkeypatch.chdir(work)
    environment = {"XDG_CONFIG_HOME": str(home), "OPSOCKET_CONFIG": str(places[1])}
    assert load_config(places[0], environment=environment).threads == 1
    assert load_config(environment=environment).threads == 2
    del environment["OPSOCKET_CONFIG"]
    assert load_config(environment=environment).threads == 3
    places[2].unlink()
    assert load_config(environment=environment).threads == 4
    places[3].unlink()
    assert load_config(environment=environment).threads is None


def test_a_named_file_must_exist(tmp_path):
    with pytest.raises(FormatError, match="does not exist"):
        load_config(tmp_path / "absent.yaml", environment={})
    with pytest.raises(FormatError, match=r"does not exist.*OPSOCKET_CONFIG"):
        load_config(environment={"OPSOCKET_CONFIG": str(tmp_path / "absent.yaml")})
    with pytest.raises(FormatError, match="is not a file"):
        load_config(tmp_path, environment={})


def test_what_is_set_can_be_handed_to_another_process() -> None:
    values = {"backend": "cpu", "operators": {"matmul": "torch", "rope": "cpu/torch"}}
    config = RuntimeConfig().override("argument", values)
    again = RuntimeConfig().override("argument", json.loads(json.dumps(config.values())))
    assert again.values() == config.values() == values
