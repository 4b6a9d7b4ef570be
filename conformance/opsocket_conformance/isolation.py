"""Cases in worker processes: one that dies or never returns is a CRASH of that case, and every other is still reported.

Each worker opens its own session (the configuration travels, no object does) and is replaced when it dies. Two workers
share nothing but the device.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any, Final, Literal, TypeVar

from opsocket.operators import DeviceInfo
from opsocket.runtime import RuntimeConfig
from opsocket_conformance.case import Case
from opsocket_conformance.exclusions import Exclusion, excluded
from opsocket_conformance.verdicts import Result, Verdict
from opsocket_conformance.worker import GRACE_S, result_from_json

if TYPE_CHECKING:
    from opsocket_conformance.journal import Part

T = TypeVar("T")
R = TypeVar("R")

Record = Literal["", "run", "rehearse"]
"""Whether what is launched is taken down: not; while it runs; instead of running, so that verdicts say nothing."""

_OPENING_S: Final = 180.0
_CLOSING_S: Final = 20.0
_DEATHS_IN_A_ROW: Final = 12
"""So many cases, one after the other, that each took their worker with them: the rest is not run."""
_QUOTED: Final = 3000


class Died(Exception):
    """A worker ended, or had to be ended, before it answered."""


class NotOpened(Exception):
    """The backend gave no session."""


@dataclass(frozen=True)
class Question:
    """A case to be put, on the session as it is or with a fault of the catalogue. limit_s: None for the pool's."""

    case: Case
    seed: int
    fault: str = ""
    limit_s: float | None = None


class Worker:
    """One process with one session. `NotOpened` where the backend gives none. environment: what of it is other than
    here. record: whether results say what was launched."""

    def __init__(
        self, config: RuntimeConfig, environment: Mapping[str, str] | None = None, record: Record = ""
    ) -> None:
        self._record = record
        self._printed: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed in close)
        to_child, self._requests = os.pipe()
        self._answers, from_child = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "opsocket_conformance.worker", str(to_child), str(from_child)],
            stdin=subprocess.DEVNULL,
            stdout=self._printed,
            stderr=self._printed,
            pass_fds=(to_child, from_child),
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
        os.close(to_child)
        os.close(from_child)
        self._unread = b""
        try:
            settings = config.values()
            self._say(settings)
            hello = self._hear(_OPENING_S)
        except Died as death:
            self.close()
            raise NotOpened(str(death)) from None
        if "failed" in hello:
            self.close()
            raise NotOpened(hello["failed"])
        self.device = DeviceInfo(**{**hello["device"], "features": tuple(hello["device"]["features"])})

    def ask(self, question: Question, limit_s: float) -> Result:
        """Have one case run; `Died` where no result comes."""
        request = {"case": question.case.id, "seed": question.seed, "fault": question.fault}
        self._say({**request, "limit_s": limit_s, **({"record": self._record} if self._record else {})})
        # The worker's own watchdog comes first; this one is for a process that can't even run that.
        return result_from_json(self._hear(limit_s + 2 * GRACE_S))

    def ask_speed(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Have one case timed, or the limit measured, as `speed.measure.answer` has it; `Died` where nothing comes."""
        self._say({"speed": dict(asked)})
        return self._hear(asked["limit_s"] + 2 * GRACE_S)

    def close(self) -> None:
        """Let the session close, for a while; then end the process."""
        os.close(self._requests)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_CLOSING_S)
        self.kill()
        os.close(self._answers)
        self._printed.close()

    def kill(self) -> None:
        """End the process now, from any thread; an `ask` that waits raises `Died`."""
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _say(self, content: dict[str, Any]) -> None:
        try:
            os.write(self._requests, json.dumps(content).encode() + b"\n")
        except OSError:
            raise Died(self._obituary()) from None

    def _hear(self, seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self.kill()
                raise Died(f"no answer within {seconds:g} s, so its process was killed\n{self._quote()}".rstrip())
            read = os.read(self._answers, 1 << 16)
            if not read:
                raise Died(self._obituary())
            self._unread += read
        line, self._unread = self._unread.split(b"\n", 1)
        heard: dict[str, Any] = json.loads(line)
        return heard

    def _obituary(self) -> str:
        try:
            code = self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self.kill()
            return f"it closed its answers without ending, and was killed\n{self._quote()}".rstrip()
        if code < 0:
            return f"its process was ended by {signal.Signals(-code).name}\n{self._quote()}".rstrip()
        return f"its process ended with exit code {code}\n{self._quote()}".rstrip()

    def _quote(self) -> str:
        """The last that the process printed."""
        self._printed.seek(0, os.SEEK_END)
        self._printed.seek(max(0, self._printed.tell() - _QUOTED))
        return self._printed.read().decode(errors="replace").strip()


def run_isolated(
    cases: Sequence[Case],
    config: RuntimeConfig,
    *,
    jobs: int = 1,
    seed: int = 0,
    limit_s: float = 60.0,
    exclusions: Sequence[Exclusion] = (),
    on_result: Callable[[Result], None] = lambda result: None,
    environment: Mapping[str, str] | None = None,
    record: Record = "",
    kept: Part | None = None,
) -> list[Result]:
    """One result per case, in their order, whatever becomes of the processes that run them. kept: results that are
    known already, and where new ones are written down."""
    pool = Pool(config, jobs, limit_s, environment, record)
    results: dict[str, Result] = {}

    def found(result: Result) -> None:
        results[result.case] = result
        on_result(result)

    def done(question: Question, result: Result) -> None:
        if kept is not None:
            kept.keep(result)
        found(result)

    asked = []
    for case in cases:
        exclusion = excluded(case.id, exclusions)
        if exclusion is not None:
            found(Result(case.id, case.check.operator, Verdict.EXCLUDED, messages=(str(exclusion),)))
        elif kept is not None and (known := kept.known(case.id)) is not None:
            found(known)
        else:
            asked.append(Question(case, seed))
    pool.run([question for question in asked if question.case.tier != "large"], done)
    # A large case takes gigabytes: one at a time, whatever `jobs` says.
    Pool(config, 1, limit_s, environment, record).run(
        [question for question in asked if question.case.tier == "large"], done
    )
    return [results[case.id] for case in cases]


class Pool:
    """Up to `jobs` workers, and as many threads that ask them. A worker that dies is replaced when it is needed.
    environment, record: as `Worker` takes them."""

    def __init__(
        self,
        config: RuntimeConfig,
        jobs: int,
        limit_s: float,
        environment: Mapping[str, str] | None = None,
        record: Record = "",
    ) -> None:
        self._environment, self._record = environment, record
        self._config, self._jobs, self._limit_s = config, jobs, limit_s
        self._lock = threading.Lock()
        self._idle: list[Worker] = []
        self._busy: set[Worker] = set()
        self._stopped = ""
        self._deaths = 0

    def run(self, questions: Sequence[Question], on_result: Callable[[Question, Result], None]) -> None:
        """Ask every question and hand over each answer, one at a time. An interrupt leaves the rest NOT_RUN."""
        self.map(self.ask, questions, on_result)

    def map(self, work: Callable[[T], R], items: Sequence[T], on_result: Callable[[T, R], None]) -> None:
        """Do `work`, which may `ask`, on every item, in as many threads as there are jobs."""
        waiting: queue.SimpleQueue[T] = queue.SimpleQueue()
        for item in items:
            waiting.put(item)
        failures: list[BaseException] = []

        def serve() -> None:
            try:
                while True:
                    item = waiting.get_nowait()
                    result = work(item)
                    with self._lock:
                        on_result(item, result)
            except queue.Empty:
                pass
            except BaseException as error:
                failures.append(error)
                self._stop("the harness failed")

        threads = [threading.Thread(target=serve, daemon=True) for _ in range(max(1, min(self._jobs, len(items))))]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except KeyboardInterrupt:
            self._stop("the run was interrupted")
            for thread in threads:
                thread.join()
        for worker in self._idle:
            worker.close()
        self._idle.clear()
        if failures:
            raise failures[0]

    def ask(self, question: Question) -> Result:
        """One answer, from any thread: CRASH where it took its worker with it, NOT_RUN where none can be had."""
        worker = self._hire()
        if worker is None:
            return _unasked(question, self._stopped)
        started = time.perf_counter()
        try:
            result = worker.ask(question, question.limit_s or self._limit_s)
        except Died as death:
            with self._lock:
                self._busy.discard(worker)
            worker.close()
            return self._crashed(question, str(death), time.perf_counter() - started)
        with self._lock:
            self._deaths = 0
            self._busy.discard(worker)
            self._idle.append(worker)
        return result

    def _hire(self) -> Worker | None:
        with self._lock:
            if self._stopped:
                return None
            worker = self._idle.pop() if self._idle else None
        if worker is None:
            try:
                worker = Worker(self._config, self._environment, self._record)
            except NotOpened as error:
                self._stop(f"the backend could not be opened: {error}")
                return None
        with self._lock:
            self._busy.add(worker)
        return worker

    def _crashed(self, question: Question, how: str, seconds: float) -> Result:
        if self._stopped:
            return _unasked(question, self._stopped)
        self._deaths += not question.fault
        if self._deaths >= _DEATHS_IN_A_ROW:
            self._stop(f"{self._deaths} cases in a row took their process with them")
        return replace(_unasked(question, how), verdict=Verdict.CRASH, seconds=seconds)

    def _stop(self, why: str) -> None:
        with self._lock:
            self._stopped = self._stopped or why
            workers = list(self._busy)
        for worker in workers:
            worker.kill()


def _unasked(question: Question, why: str) -> Result:
    return Result(question.case.id, question.case.check.operator, Verdict.NOT_RUN, messages=(why,))
