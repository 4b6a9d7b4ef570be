"""Peers, each in an environment of its own under .peers/: `make bench-peers`, or this file with some of their names.

None is a dependency of this project. What can't be installed is named, and the benchmarks go on without it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2] / ".peers"

REQUIREMENTS: dict[str, list[str]] = {
    "openvino": ["openvino-genai==2026.4.*", "numpy"],
    "llama_cpp": ["llama-cpp-python", "numpy"],  # compiled here, for this processor: about ten minutes on two cores
}
SETTINGS = {"llama_cpp": {"CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAMA_CURL=OFF"}}


def python(name: str) -> Path:
    """The interpreter of a peer's environment."""
    return ROOT / name / "bin" / "python"


def installed(name: str) -> bool:
    return (ROOT / name / ".installed").exists()


def install(name: str) -> None:
    """Make a peer's environment, unless it is there."""
    if installed(name):
        return
    subprocess.run([sys.executable, "-m", "venv", str(ROOT / name)], check=True)
    settings = os.environ | SETTINGS.get(name, {})
    command = [str(python(name)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *REQUIREMENTS[name]]
    subprocess.run(command, check=True, env=settings)
    (ROOT / name / ".installed").touch()


def main() -> int:
    failed = []
    for name in sys.argv[1:] or REQUIREMENTS:
        print(f"== {name} ==", flush=True)
        try:
            install(name)
        except subprocess.CalledProcessError as error:
            failed.append(name)
            print(f"{name}: {error}", file=sys.stderr)
    print("installed:", ", ".join(name for name in REQUIREMENTS if installed(name)) or "none")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
