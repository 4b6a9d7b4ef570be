"""Shared by every test folder: deterministic hypothesis, and one thread per worker so that workers don't fight."""

from __future__ import annotations

import os
import shutil
import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile(
    "opsocket", derandomize=True, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("opsocket")


@pytest.fixture(scope="session")
def template_site(tmp_path_factory) -> Path:
    """A folder to put on PYTHONPATH in which examples/plugin_template is installed, as pip would, but sooner."""
    source, site = Path(__file__).parents[1] / "examples" / "plugin_template", tmp_path_factory.mktemp("template")
    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    shutil.copytree(source / "src", site, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    requires = "".join(f"Requires-Dist: {each}\n" for each in project["dependencies"])
    named = f"Name: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\n{named}{requires}")
    points = "".join(f"{name} = {value}\n" for name, value in project["entry-points"]["opsocket"].items())
    (info / "entry_points.txt").write_text(f"[opsocket]\n{points}")
    return site
