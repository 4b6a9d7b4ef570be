"""The published schema and the validator come from one table; here they are asked the same questions."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import opsocket.runtime
from opsocket import FormatError
from opsocket.runtime import load_config
from opsocket.runtime.config import options
from opsocket.runtime.schema import json_schema

PUBLISHED = Path(opsocket.runtime.__file__).parent / "opsocket.schema.json"
VALIDATOR = jsonschema.Draft202012Validator(json_schema())


def test_the_published_file_is_the_schema():
    assert json.loads(PUBLISHED.read_text()) == json_schema()


def test_it_is_a_schema_of_its_draft():
    jsonschema.Draft202012Validator.check_schema(json_schema())


def test_it_describes_every_option():
    def keys(schema: dict, prefix: str = ""):
        for name, below in schema["properties"].items():
            assert below.get("description") or below["properties"]
            yield from keys(below, f"{prefix}{name}.") if "properties" in below else [prefix + name]

    assert set(keys(json_schema())) == {option.key for option in options()}


PROFILE = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXTS = ["", "cpu", "cuda:1", "CUDA", "auto", "torch", "cpu/torch", "a/b/c", "f16", "f32", "i8/token_head", "i8/none"]
NUMBERS = [None, True, False, 0, 1, 7, 1.0, 1.5, -3, 2**31]
SCALARS = st.sampled_from([*TEXTS, *NUMBERS, "shapes", "deep", "error", "reference"])
DATA = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=2),
    st.dictionaries(st.sampled_from(["attention", "matmul", "alow", "allow", "max_batch"]), SCALARS, max_size=2),
)
ENGINE_KEYS = [
    "max_batch",
    "max_tokens",
    "block_size",
    "num_blocks",
    "kv_format",
    "dtype",
    "activations",
    "capture",
    "other",
]
ENGINE = st.dictionaries(st.sampled_from(ENGINE_KEYS), DATA, max_size=3)
PLUGINS = st.dictionaries(st.sampled_from(["allow", "deny"]), DATA, max_size=2)
TOP = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("backend", "operators", "threads", "checked", "fallback", "other"), DATA),
        "engine": st.one_of(ENGINE, DATA),
        "plugins": st.one_of(PLUGINS, DATA),
    },
)


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(TOP)
def test_validator_and_schema_agree(tmp_path, data):
    path = tmp_path / "opsocket.yaml"
    path.write_text(yaml.safe_dump(data))
    try:
        load_config(path, environment={})
        accepted = True
    except FormatError:
        accepted = False
    assert accepted == VALIDATOR.is_valid(data)


@pytest.mark.parametrize(
    "data",
    [
        {"backend": "cuda:1", "operators": {"attention": "cuda/torch", "matmul": "torch"}, "threads": 4},
        {"plugins": {"allow": []}, "checked": "deep", "fallback": "error"},
        {
            "engine": {
                "max_batch": 8,
                "max_tokens": 512,
                "block_size": 32,
                "kv_format": "i8/token_head",
                "dtype": "bf16",
            }
        },
        {"plugins": {"allow": None}, "threads": None, "engine": {"dtype": None, "kv_format": None, "num_blocks": None}},
    ],
)
def test_examples_are_taken_by_both(tmp_path, data):
    assert VALIDATOR.is_valid(data)
    path = tmp_path / "opsocket.yaml"
    path.write_text(yaml.safe_dump(data))
    load_config(path, environment={})
