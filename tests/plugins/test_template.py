"""examples/plugin_template is what it says: free of torch, renamed by what the how-to says, and right."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "examples" / "plugin_template"
HOW_TO = ROOT / "docs" / "first-backend-in-15-minutes.md"

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
sys.argv[0] = "opsocket"
from opsocket.cli.main import main
main()
"""


@pytest.fixture
def opsocket(template_site, tmp_path):
    """opsocket(*arguments) -> completed process in which torch can't be imported; site: another folder of plugins."""

    def run(*arguments: str, site: Path = template_site, plugins: str = "template") -> subprocess.CompletedProcess[str]:
        variables = {"PYTHONPATH": str(site), "OPSOCKET_PLUGINS": plugins, "XDG_CONFIG_HOME": str(tmp_path)}
        environment = {**os.environ, **variables, "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-c", WITHOUT_TORCH, *arguments]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=200)

    return run


def test_it_imports_numpy_and_opsocket_and_nothing_else():
    imported = set()
    for path in TEMPLATE.rglob("src/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.partition(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"numpy", "opsocket", "opsocket_template"}


def test_without_torch_smoke_holds_every_profile_that_it_is_for(opsocket):
    profiles = "decoder,decoder-f32,decoder-f16,kv-int8,quant-w8a8,long-context,sliding-window,moe,speculative,cascade"
    done = opsocket("conformance", "-b", "template", "--tier", "smoke", "--profile", profiles, "--in-process")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_without_torch_the_default_tier_is_green(opsocket):
    profiles = (
        "decoder,decoder-f32,decoder-f16,kv-int8,quant-w4,quant-w2,quant-w4a8,quant-w8a8,sliding-window,moe,speculative,"
        "cascade"
    )
    done = opsocket("conformance", "-b", "template", "--profile", profiles)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.model
def test_a_real_model_speaks_through_it(opsocket):
    asked = ("--model", "smollm2", "--no-chat", "--max-tokens", "8", "The capital of France is")
    done = opsocket("generate", "-b", "template", *asked)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(" Paris.")


@pytest.mark.install
def test_the_how_to_renames_it_whole(opsocket, tmp_path):
    commands = re.findall(r"^\$ (mv .*|grep .*)$", HOW_TO.read_text(), re.MULTILINE)
    assert len(commands) == 2
    copy, site = tmp_path / "mychip", tmp_path / "site"
    shutil.copytree(TEMPLATE, copy, ignore=shutil.ignore_patterns("__pycache__", ".*_cache"))
    for command in commands:
        subprocess.run(["bash", "-ec", command], cwd=copy, check=True)
    named = [path for path in copy.rglob("*") if "template" in path.name.lower() or path.suffix == ".bak"]
    told = [path for path in copy.rglob("*") if path.is_file() and "template" in path.read_text().lower()]
    assert not named
    assert not told
    install = ["install", "-q", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(site), str(copy)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True, timeout=120)
    asked = ("conformance", "-b", "mychip", "--tier", "smoke", "--filter", "matmul", "--in-process")
    done = opsocket(*asked, site=site, plugins="mychip")
    assert done.returncode == 0, done.stdout + done.stderr
