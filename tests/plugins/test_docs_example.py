"""docs/writing-a-backend.md is true: its blocks, put together, are a distribution that works."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "writing-a-backend.md"

USE = """
import numpy as np, opsocket
from opsocket.operators import MatmulSpec, Request, SiluMulSpec
session = opsocket.open("mychip")
request = Request(MatmulSpec("f32", 3, 4))
weight = np.arange(12, dtype=np.float32).reshape(3, 4)
x = np.ones((2, 4), np.float32)
packed = session.prepare_weight(request, {"weight": weight})
np.testing.assert_array_equal(session.plan(request).run(x, packed), x @ weight.T)
silu = session.plan(Request(SiluMulSpec(4))).run(x, x)
np.testing.assert_allclose(silu, 1 / (1 + np.exp(-1.0)) * x, rtol=1e-6)
print(session.plan(request).provider)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """The environment of a process that has the page's distribution installed."""
    folder, site = tmp_path_factory.mktemp("opsocket-mychip"), tmp_path_factory.mktemp("site")
    text = PAGE.read_text()
    (folder / "pyproject.toml").write_text("".join(re.findall(r"```toml\n(.*?)```", text, re.DOTALL)))
    (folder / "opsocket_mychip").mkdir()
    code = "\n\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    (folder / "opsocket_mychip" / "__init__.py").write_text(code)
    install = ["install", "-q", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(site), str(folder)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True, timeout=120)
    return {**os.environ, "PYTHONPATH": str(site)}


def run(environment: dict[str, str], *command: str) -> str:
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.install
def test_it_is_listed_as_available(environment):
    listed = json.loads(run(environment, "-m", "opsocket", "backends", "--json"))
    assert any(b["name"] == "mychip" and b["devices"] for p in listed["plugins"] for b in p["backends"]), listed


@pytest.mark.install
def test_its_operators_run(environment):
    assert run(environment, "-c", USE).strip() == "numpy"
