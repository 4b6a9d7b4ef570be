"""What was measured to be fastest is asked first, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest

import opsocket
from opsocket.operators import Bounds, FormatError, MatmulSpec, Request
from opsocket.runtime import tuning


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


REQUEST = Request(MatmulSpec("q4_0", 64, 64))


def test_the_choice_is_asked_first_whatever_the_bounds() -> None:
    with opsocket.open("cpu") as session:
        before = session.supports(REQUEST).provider
        tuning.save(session.device, {REQUEST.work: "onnxruntime"})
    with opsocket.open("cpu") as session:
        assert session.supports(Request(REQUEST.spec, bounds=Bounds(max_tokens=3))).provider == "onnxruntime"
        assert session.supports(Request(MatmulSpec("q4_0", 96, 64))).provider == before


def test_a_pin_is_stronger_and_a_refusal_goes_on_to_the_next() -> None:
    refused = Request(MatmulSpec("q4_1", 64, 64))
    with opsocket.open("cpu") as session:
        tuning.save(session.device, {REQUEST.work: "onnxruntime", refused.work: "onnxruntime"})
    with opsocket.open("cpu", operators={"matmul": "torch"}) as session:
        assert session.supports(REQUEST).provider == "torch"
    with opsocket.open("cpu") as session:
        support = session.supports(refused)
        assert support.provider != "onnxruntime"
        assert support.passed_over[0][0] == "onnxruntime"


def test_choices_are_added_to_those_before() -> None:
    with opsocket.open("cpu") as session:
        tuning.save(session.device, {"a": "torch"})
        tuning.save(session.device, {"b": "native"})
        assert tuning.load(session.device) == {"a": "torch", "b": "native"}


@pytest.mark.parametrize("text", ["", "[]", '{"choices": 3}', '{"version": "%s", "choices": {"a": 3}}'])
def test_a_file_that_is_not_ours_is_named(text: str) -> None:
    with opsocket.open("cpu") as session:
        device = session.device
    file = tuning.path(device)
    file.parent.mkdir(parents=True)
    file.write_text(text.replace("%s", opsocket.__version__))
    with pytest.raises(FormatError, match=file.name):
        opsocket.open("cpu")


def test_another_versions_choices_are_passed_over() -> None:
    with opsocket.open("cpu") as session:
        device = session.device
    tuning.save(device, {"a": "torch"})
    file = tuning.path(device)
    file.write_text(file.read_text().replace(opsocket.__version__, "0.0.0"))
    assert tuning.load(device) == {}
