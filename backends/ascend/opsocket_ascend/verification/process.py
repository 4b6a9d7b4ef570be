"""Records put to a checker in a process of its own, a line of JSON each way: one that dies of a record is a problem of
that record alone."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from opsocket.operators import Artifact

Read = Callable[[Mapping[str, Any]], Artifact]
"""An artifact of what the checker answered."""


@dataclass(frozen=True)
class Checker:
    """command: of the process. environment: what is added to ours."""

    command: tuple[str, ...]
    environment: Mapping[str, str]

    def ask(
        self, arch: str, questions: Sequence[tuple[str, Any]], jobs: int, read: Read, tell: Callable[[Artifact], None]
    ) -> list[Artifact]:
        """An artifact for each (record, what the process is asked of it), in order, by so many processes at the same
        time. tell: is told of each as it is made."""
        made: list[Artifact | None] = [None] * len(questions)
        lock = threading.Lock()

        def serve(indices: Sequence[int]) -> None:
            mine = [questions[index] for index in indices]
            for index, artifact in zip(indices, self._answers(arch, mine, read), strict=True):
                with lock:
                    made[index] = artifact
                    tell(artifact)

        threads = [
            threading.Thread(target=serve, args=(range(first, len(questions), jobs),))
            for first in range(min(jobs, len(questions)))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [artifact for artifact in made if artifact is not None]

    def _answers(self, arch: str, questions: Sequence[tuple[str, Any]], read: Read) -> Iterator[Artifact]:
        left = list(questions)
        while left:
            done = 0
            with _Process(self) as process:
                for record, question in left:
                    started = time.perf_counter()
                    told = process.ask(question)
                    done += 1
                    if told is None:
                        seconds = round(time.perf_counter() - started, 4)
                        yield Artifact(record[:80], record, arch, problems=(process.obituary(),), seconds=seconds)
                        break
                    yield read({"seconds": round(time.perf_counter() - started, 4), **told})
            left = left[done:]


def facts_of(told: Mapping[str, Any]) -> dict[str, Any]:
    """An answer's facts, as an artifact has them."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in told["facts"].items()}


class _Process:
    """The checker, behind a pipe each way."""

    def __init__(self, checker: Checker) -> None:
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)
        self._process = subprocess.Popen(
            checker.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env={**os.environ, **checker.environment},
        )

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._said.close()

    def ask(self, question: Any) -> dict[str, Any] | None:
        """The answer; None where the process ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except OSError:
            return None
        line = self._process.stdout.readline()
        told: dict[str, Any] | None = json.loads(line) if line.endswith("\n") else None
        return told

    def obituary(self) -> str:
        code = self._process.wait()
        self._said.seek(0)
        last = self._said.read().decode(errors="replace").strip().splitlines()[-1:]
        return f"checker: its process ended with code {code}: {''.join(last)}"
