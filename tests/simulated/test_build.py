"""Without a compiler there is no device, and a reason."""

from __future__ import annotations

import pytest

from opsocket_simulated import build


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)


def test_no_compiler(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "no C++ compiler" in build.absence()
    assert "no C++ compiler" in build.built()


def test_a_compiler_that_fails_is_asked_once(tmp_path, monkeypatch):
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho x >> $0.asked\necho 'fatal error: no such header' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert build.absence() is None  # nobody knows yet
    for _ in range(2):
        assert "no such header" in build.built()
    assert "delete it to try again" in build.absence()
    assert (tmp_path / "c++.asked").read_text() == "x\n"
