"""Calls of libraries are held against signatures, imported or read, and what does not fit is told."""

from __future__ import annotations

import sys

import pytest

from opsocket.operators import VendorCall
from opsocket_conformance.ladder import bindings, section
from opsocket_conformance.ladder.bind_calls import answer

SOURCE = """
def plain(a, b, /, c, d=1, *, e, f=2): ...

class Wrapper:
    def __init__(self, workspace, layout="NHD"): ...
    def plan(self, lengths, *rest, **options):
        scale = options.pop("sm_scale", None)
    @staticmethod
    def helper(x): ...
"""


@pytest.fixture(params=["imported", "read"])
def library(request, tmp_path, monkeypatch) -> str:
    """A package with the source above, which imports; and one that does not, as without its chip."""
    name = f"vendor_{request.param}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("" if request.param == "imported" else "raise RuntimeError('no chip')")
    (tmp_path / name / "ops.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    for module in [each for each in sys.modules if each.startswith(name)]:
        del sys.modules[module]


def problem(library: str, path: str, positional: int = 0, *named: str) -> str:
    told = answer({"target": f"{library}.ops:{path}", "positional": positional, "named": named})
    assert told["library"].startswith(library)
    assert ("was read" in told["library"]) == library.endswith("read")
    return told["problem"]


def test_calls_that_fit_and_calls_that_do_not(library) -> None:
    assert problem(library, "plain", 3, "e", "f") == ""
    assert problem(library, "Wrapper.__init__", 1, "layout") == ""
    assert problem(library, "Wrapper.helper", 1) == ""
    assert "missing a required" in problem(library, "plain", 3)
    assert "unexpected keyword argument 'g'" in problem(library, "plain", 3, "e", "g")
    assert "too many positional" in problem(library, "Wrapper.__init__", 3)
    told = answer({"target": f"{library}.ops:absent", "positional": 0, "named": []})
    assert "defines no absent" in told["problem"]


def test_a_name_that_any_name_would_do_for_has_to_be_mentioned(library) -> None:
    assert problem(library, "Wrapper.plan", 2, "sm_scale") == ""
    assert "softmax_scale: taken as any name is" in problem(library, "Wrapper.plan", 2, "softmax_scale")


def test_a_library_that_is_not_here_is_no_failure() -> None:
    told = answer({"target": "nobody_has_this.ops:f", "positional": 0, "named": []})
    assert told == {"library": "", "problem": "nobody_has_this is not installed"}


class _Provider:
    name = "vendor"

    def vendor_calls(self):
        return [VendorCall("json:dumps", 1, ("indent",)), VendorCall("json:dumps", 1, ("indents",)),
                VendorCall("nobody_has_this:f")]  # fmt: skip


class _Backend:
    def providers(self):
        return [_Provider()]


def test_every_interpreter_that_is_named_is_asked(monkeypatch) -> None:
    monkeypatch.setenv(bindings.VARIABLE, "/nowhere/python")
    bound = bindings.bind(_Backend())
    assert [(each.provider, bool(each.library), bool(each.problem)) for each in bound] == [
        ("vendor", True, False),
        ("vendor", True, True),
        ("vendor", False, True),
    ]
    content = {"controls": [], "artifacts": [], "numerics": [], "bindings": [vars(each) for each in bound]}
    assert section.failure(content) == "1 calls do not bind, such as json:dumps"
    content["bindings"].pop(1)
    assert section.failure(content) == ""
