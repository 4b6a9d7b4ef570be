"""Results kept as they come, so that a run which ended early goes on where it was.

A file of JSON lines: what the results are of, then a result each. Another run goes on from it only where nothing has
changed that could change one: the suite's and the backends' files, machine, versions, opsocket's variables of the
environment, seed, configuration.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final

from opsocket.operators import Backend, ContractError, FormatError, Ladder
from opsocket.runtime import RuntimeConfig
from opsocket_conformance.evidence import host, sources_digest, suite_digest
from opsocket_conformance.verdicts import Result, Verdict
from opsocket_conformance.worker import result_from_json, result_to_json

_KEPT: Final = (Verdict.PASS, Verdict.FAIL, Verdict.UNSUPPORTED)
"""A case that crashed or did not run may come to something else another time."""


def what_results_are_of(backend: Backend, ladder: Ladder, config: RuntimeConfig, seed: int) -> dict[str, Any]:
    """All that could change a result, beside the case and the device."""
    return {
        "suite": suite_digest(),
        "sources": sources_digest(type(backend), type(ladder)),
        "host": host(),
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith("OPSOCKET_")},
        "backend": backend.info.name,
        "configuration": config.values(),
        "seed": seed,
    }


class Journal:
    """A file of results. of: what they are of. resumed: how many results of this run it knew.

    `FormatError` for a file that is no journal, `ContractError` for one of results of something else. A last line that
    was written by half is dropped. Lines are written out one by one: what was found outlives the process.
    """

    def __init__(self, path: str | Path, of: Mapping[str, Any]) -> None:
        self.resumed = 0
        self._known: dict[tuple[str, str], Result] = {}
        path, of = Path(path), json.loads(json.dumps(of))
        try:
            there = path.read_bytes() if path.exists() else b""
            whole = there.rpartition(b"\n")[0]
            if whole:
                self._read(path, whole.decode("utf-8").split("\n"), of)
            elif there:
                raise FormatError(path, "line 1", "wanted what `--resume` wrote")
            self._file: IO[bytes] = path.open("r+b" if there else "wb")
        except (OSError, UnicodeDecodeError) as error:
            raise FormatError(path, "file", str(error)) from None
        if there:
            self._file.seek(len(whole) + 1)
            self._file.truncate()
        else:
            self._write({"of": of})

    def _read(self, path: Path, lines: list[str], of: Mapping[str, Any]) -> None:
        found = _parsed(path, 1, lines[0])
        if set(found) != {"of"} or not isinstance(found["of"], dict):
            raise FormatError(path, "line 1", "wanted what `--resume` wrote")
        other = sorted(name for name in {*found["of"], *of} if found["of"].get(name) != of.get(name))
        if other:
            raise ContractError(
                "resume", "results of this very run", f"{path}, of another {', '.join(other)}: name another file"
            )
        for number, line in enumerate(lines[1:], 2):
            content = _parsed(path, number, line)
            try:
                result = result_from_json(content["result"])
                if result.verdict not in _KEPT or not isinstance(result.case, str):
                    raise ValueError(result.verdict)
                self._known[str(content["part"]), result.case] = result
            except (KeyError, TypeError, ValueError, AttributeError):
                raise FormatError(path, f"line {number}", "wanted the result of a case") from None

    def part(self, name: str) -> Part:
        """The results of one place, such as an architecture."""
        return Part(self, name)

    def known(self, part: str, case: str) -> Result | None:
        """The result of a case, if it is there; counted as resumed."""
        found = self._known.get((part, case))
        self.resumed += found is not None
        return found

    def keep(self, part: str, result: Result) -> None:
        """Write a result down."""
        if result.verdict in _KEPT:
            self._write({"part": part, "result": result_to_json(result)})

    def close(self) -> None:
        self._file.close()

    def _write(self, content: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(content).encode("ascii") + b"\n")
        self._file.flush()


class Part:
    """A journal's results of one place."""

    def __init__(self, journal: Journal, name: str) -> None:
        self._journal, self._name = journal, name

    def known(self, case: str) -> Result | None:
        return self._journal.known(self._name, case)

    def keep(self, result: Result) -> None:
        self._journal.keep(self._name, result)


def _parsed(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FormatError(path, f"line {number}", str(error)) from None
    if not isinstance(found, dict):
        raise FormatError(path, f"line {number}", "wanted an object")
    return found
