"""A self-test's results, in the report of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from opsocket.operators import FormatError
from opsocket_conformance.evidence import suite_digest
from opsocket_conformance.report.data import seal
from opsocket_conformance.report.reading import Rules, schema


def with_power(report: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """The report with the kill matrix that `--self-test --json` wrote; `FormatError` where it is of another suite."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(path, "file", str(error)) from None
    if not (isinstance(found, dict) and isinstance(found.get("suite"), dict)):
        raise FormatError(path, "suite", "wanted what --self-test --json writes")
    if found["suite"].get("digest") != suite_digest():
        raise FormatError(path, "suite.digest", f"wanted this suite's, {suite_digest()[:16]}")
    rules = Rules(schema())
    for where, problem in rules.violations({**report, "power": found.get("power")}):
        raise FormatError(path, where, problem)
    return seal({**report, "power": found["power"]})
