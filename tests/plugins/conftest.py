"""Small real distributions: wheels made from `samples/`, installed by pip into a folder that is put on the path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from opsocket.plugins.load import reload

SAMPLES = Path(__file__).parent / "samples"
HARMLESS = {path.stem for path in SAMPLES.glob("*.py")} - {"base", "hangs", "crashes"}
REQUIRES = {"requires99": "opsocket>=99"}


def build_wheel(folder: Path, sample: str) -> Path:
    """A wheel `sample-<name>` 1.0 with one plugin, whose entry point has the sample's name."""
    name, info = f"sample_{sample}", f"sample_{sample}-1.0.dist-info"
    files = {
        f"{name}/__init__.py": "",
        f"{name}/base.py": (SAMPLES / "base.py").read_text(),
        f"{name}/plugin.py": (SAMPLES / f"{sample}.py").read_text(),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: sample-{sample}\nVersion: 1.0\n"
        f"Requires-Dist: {REQUIRES.get(sample, 'opsocket>=0.1')}\nRequires-Dist: opsocket-elsewhere>=99\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[opsocket]\n{sample} = {name}.plugin\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(path, text)
    return wheel


def install(folder: Path, samples: set[str]) -> Path:
    """Install samples into `folder`/site by pip."""
    folder.mkdir(exist_ok=True)
    wheels = [str(build_wheel(folder, sample)) for sample in sorted(samples)]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run([*pip, "--target", str(folder / "site"), *wheels], check=True)
    return folder / "site"


@pytest.fixture(scope="session")
def installed(tmp_path_factory) -> Path:
    """A folder into which every sample is installed that does not harm the process that loads it."""
    return install(tmp_path_factory.mktemp("harmless"), HARMLESS)


@pytest.fixture(scope="session")
def wild(tmp_path_factory) -> Path:
    """A folder with those that hang and crash, beside a good one and one that prints."""
    return install(tmp_path_factory.mktemp("wild"), {"hangs", "crashes", "good", "prints", "retracts"})


@pytest.fixture(scope="session")
def opsocket_command(tmp_path_factory):
    """Run `opsocket` in a process of its own: (site folder, allowed plugins, *arguments) -> completed process."""
    folder = tmp_path_factory.mktemp("cwd")

    def run(site: Path, allow: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {name: text for name, text in os.environ.items() if not name.startswith("OPSOCKET_")}
        variables = {"PYTHONPATH": str(site), "OPSOCKET_PLUGINS": allow, "XDG_CONFIG_HOME": str(folder)}
        return subprocess.run(
            [Path(sys.executable).parent / "opsocket", *arguments],
            env={**kept, **variables, **environment},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@pytest.fixture(scope="session")
def listed(installed, opsocket_command, tmp_path_factory) -> dict[str, dict]:
    """What `opsocket backends --json` says of each sample, by name, with all of them installed at once."""
    marker = tmp_path_factory.mktemp("marker") / "imported"
    done = opsocket_command(installed, ",".join(HARMLESS), "backends", "--json", SAMPLE_IMPORTED=str(marker))
    assert done.returncode == 0, done.stderr
    plugins = {plugin["name"]: plugin for plugin in json.loads(done.stdout)["plugins"]}
    plugins["requires99"]["was_imported"] = marker.exists()
    return plugins


@pytest.fixture
def on_path(installed, monkeypatch):
    """The samples, importable in this process; only those named in the test's own `OPSOCKET_PLUGINS` should load."""
    monkeypatch.syspath_prepend(str(installed))
    monkeypatch.setenv("OPSOCKET_PLUGINS", "none")
    reload()
    yield installed
    monkeypatch.undo()
    reload(allow=())
