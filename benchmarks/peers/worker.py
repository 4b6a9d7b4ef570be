"""A system under measurement, as the driver sees it: a process that answers jobs (see protocol.py)."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import install

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class System:
    """script, environment (None: this one) and options of a worker."""

    script: str
    environment: str | None
    options: tuple[str, ...] = ()


class Worker:
    """A system's process. given: more of its command line."""

    def __init__(self, name: str, system: System, threads: int, given: Sequence[str] = ()) -> None:
        python = sys.executable if system.environment is None else str(install.python(system.environment))
        command = [python, str(HERE / system.script), *given, "--threads", str(threads), *system.options]
        settings = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        errors = None if os.environ.get("BENCH_DEBUG") else subprocess.DEVNULL
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=settings
        )
        self.name = name
        self.facts = self._read()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        """RuntimeError where it has ended."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with {self._process.wait()} (BENCH_DEBUG=1 shows what it says)")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def held(lock: Path | None, kind: int) -> Iterator[None]:
    """Holds a lock file meanwhile (flock; kind: fcntl.LOCK_EX for samples, LOCK_SH for other work), for machines that
    several use."""
    if lock is None:
        yield
        return
    with lock.open("a") as file:
        fcntl.flock(file, kind)
        yield


def busy_elsewhere(worker: Worker) -> float:
    """CPU seconds so far of all that is neither this process nor the worker."""
    ticks = os.sysconf("SC_CLK_TCK")
    fields = Path("/proc/stat").read_text().split("\n")[0].split()[1:]
    busy = sum(int(fields[i]) for i in (0, 1, 2, 5, 6, 7))
    mine = 0
    for pid in (os.getpid(), worker.pid):
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        mine += int(stat[11]) + int(stat[12])
    return (busy - mine) / ticks
