"""Metadata on disk is a stranger's file too."""

from __future__ import annotations

import pytest

from opsocket.plugins.discovery import discover
from opsocket.plugins.entries import installed


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """Write a distribution's metadata by hand and put it on the path."""

    def write(metadata: str, entry_points: bytes = b"[opsocket]\nodd = odd_plugin\n") -> None:
        info = tmp_path / "odd-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n{metadata}")
        (info / "entry_points.txt").write_bytes(
            entry_points.encode() if isinstance(entry_points, str) else entry_points
        )
        monkeypatch.syspath_prepend(str(tmp_path))

    return write


def found():
    return next(d for d in discover(None) if d.distribution == "odd")


@pytest.mark.parametrize(
    ("requires", "refused"),
    [
        ("Requires-Dist: opsocket>=99", True),
        ("Requires-Dist: Opsocket (<0.0.1)", True),
        ("Requires-Dist: opsocket[cpu]>=99", True),
        ("Requires-Dist: opsocket>=99; python_version < '3'", False),
        ("Requires-Dist: opsocket>=99; extra == 'later'", False),
        ("Requires-Dist: opsocket-other>=99", False),
        ("Requires-Dist: opsocket", False),
        ("", False),
    ],
)
def test_only_the_distributions_own_requirement_on_opsocket_counts(distribution, requires, refused):
    distribution(requires)
    fault = found().fault
    assert (fault is not None) == refused
    if fault is not None:
        assert fault.stage == "compatible"
        assert "requires opsocket" in fault.cause
        assert "this is opsocket" in fault.cause


def test_an_unreadable_requirement_is_that_plugins_fault(distribution):
    distribution("Requires-Dist: opsocket >>> 1")
    plugin = next(d for d in discover(None) if d.entry_point.name == "odd")
    assert plugin.fault is not None
    assert "metadata can't be read" in plugin.fault.cause


@pytest.mark.parametrize("text", [b"[opsocket]\nno equals sign\n", b"[opsocket]\n\xff\xfe = x\n"])
def test_a_broken_entry_point_file_hides_no_other_plugin(distribution, text):
    before = {entry.name for entry in installed("opsocket").found}
    assert "cpu" in before
    distribution("", text)
    assert {entry.name for entry in installed("opsocket").found} == before
    fault = found().fault
    assert fault is not None
    assert "entry_points.txt can't be read" in fault.cause
