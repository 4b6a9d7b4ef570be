"""The calls that a backend's providers make of vendors' libraries, bound to the libraries' real signatures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Final

from opsocket.operators import Backend
from opsocket_conformance.ladder import bind_calls
from opsocket_conformance.ladder.section import Binding

VARIABLE: Final = "OPSOCKET_VENDOR_PYTHON"
"""The interpreters of environments that have vendors' libraries, separated as PATH is. They need nothing of ours."""
_LIMIT_S: Final = 300.0


def bind(backend: Backend) -> list[Binding]:
    """Every call that the providers name, by the first interpreter that has its library."""
    calls = [(provider.name, call) for provider in backend.providers() for call in provider.vendor_calls()]
    named = os.environ.get(VARIABLE, "")
    answers = [{"library": "", "problem": "nobody was asked"} for _ in calls]
    for python in [sys.executable, *(os.path.abspath(each) for each in named.split(os.pathsep) if each)]:
        open_ones = [index for index, answer in enumerate(answers) if not answer["library"]]
        if open_ones:
            told = _ask(python, [asdict(calls[index][1]) for index in open_ones])
            answers = [told[open_ones.index(i)] if i in open_ones else answer for i, answer in enumerate(answers)]
    return [
        Binding(call.target, provider, answer["library"], answer["problem"])
        for (provider, call), answer in zip(calls, answers, strict=True)
    ]


def _ask(python: str, calls: list[dict[str, object]]) -> list[dict[str, str]]:
    try:
        ran = subprocess.run(
            [python, "-c", Path(bind_calls.__file__).read_text(encoding="utf-8")],
            cwd=tempfile.gettempdir(),
            input=json.dumps(calls),
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )
        answers: list[dict[str, str]] = json.loads(ran.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        said = f"{python}: {type(error).__name__}: {error}"
        return [{"library": "", "problem": said} for _ in calls]
    return answers
