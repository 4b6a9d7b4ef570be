"""Looking at one plugin from a process of its own: what can't be bounded inside ours, a slow or hanging import, writes
to stdout, a crash, becomes a line in a report.

The child is this module run as a program: `python -m opsocket.plugins.probe DISTRIBUTION NAME VALUE REPORT`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from opsocket.operators import ResourceError, Session, SessionOptions
from opsocket.plugins.canonical import canonical_requests
from opsocket.plugins.discovery import Discovered, discover
from opsocket.plugins.load import load, proven
from opsocket.plugins.stages import Fell, reached_before, stage
from opsocket.plugins.status import BackendStatus, Fault, PluginStatus, Stage

SLOW_IMPORT_SECONDS: Final = 1.0
_TAIL: Final = 4000
_LAST_WORDS_SECONDS: Final = 2.0
_AUTOLOAD: Final = "TORCH_DEVICE_BACKEND_AUTOLOAD"
"""torch would load every vendor's extension that is installed, and fall with one that is broken, whose plugin this may
not be. A backend imports its own."""


@dataclass(frozen=True)
class Probe:
    """seconds: of the whole probe, the interpreter's start included. warnings: what is not a fault but should be known.
    The status reaches "opened" where a session opened and planned every canonical request that it supports."""

    status: PluginStatus
    seconds: float
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {**self.status.to_json(), "probe_seconds": self.seconds, "warnings": list(self.warnings)}


def probe(found: Discovered, limit_seconds: float) -> Probe:
    """Take one plugin through all stages in a child process, killed with its own children after the limit."""
    if found.fault is not None:
        return Probe(load(found), 0.0)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="opsocket-probe-") as folder:
        report, output, errors = (Path(folder, name) for name in ("report", "stdout", "stderr"))
        command = [sys.executable, "-X", "faulthandler", "-m", __name__, *found.key, str(report)]
        with output.open("wb") as out, errors.open("wb") as err:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=os.name == "posix",
                env={_AUTOLOAD: "0", **os.environ},
            )
            try:
                code: int | None = child.wait(limit_seconds)
            except subprocess.TimeoutExpired:
                code = None
                _make_it_tell(child)
            finally:
                _kill(child)
        seconds = time.perf_counter() - start
        status = _read(found, report, code, limit_seconds, _tail(errors))
        return Probe(status, seconds, tuple(_warnings(status, output)))


def _make_it_tell(child: subprocess.Popen[bytes]) -> None:
    """Have the child's fault handler write where it is to stderr, where the system can."""
    if os.name != "posix":
        return
    child.send_signal(signal.SIGABRT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(_LAST_WORDS_SECONDS)


def _kill(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.name == "posix":
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()
    child.wait()


def _read(found: Discovered, report: Path, code: int | None, limit: float, errors: str) -> PluginStatus:
    """The child's own account, or what its silence says: the stage that it had entered when it ended."""
    lines = [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []
    told = [line["status"] for line in lines if "status" in line]
    if told:
        return PluginStatus.from_json(told[-1])
    entered: Stage = next((line["entering"] for line in reversed(lines)), "compatible")
    if code is None:
        cause = f"still busy with stage {entered!r} after {limit:g} s, and was stopped"
    elif code < 0:
        cause = f"the process was ended by signal {-code} ({signal.Signals(-code).name}) in stage {entered!r}"
    else:
        cause = f"the process ended itself with code {code} in stage {entered!r}"
    fault = Fault(entered, cause, f"set OPSOCKET_PLUGINS to leave {found.distribution} out, or uninstall it", errors)
    name, target = found.entry_point.name, found.entry_point.value
    return PluginStatus(name, target, found.distribution, found.version, reached_before(fault), fault)


def _warnings(status: PluginStatus, output: Path) -> Iterator[str]:
    if size := output.stat().st_size:
        with output.open("rb") as file:
            start = file.read(60).decode(errors="replace")
        yield f"writes to stdout while it is loaded ({size} bytes: {start!r}), which spoils the output of --json"
    if status.import_seconds is not None and status.import_seconds > SLOW_IMPORT_SECONDS:
        yield f"takes {status.import_seconds:.1f} s to import, which whoever lists backends waits for"


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        return file.read().decode(errors="replace")


def open_and_plan(status: BackendStatus) -> BackendStatus:
    """Open the backend's first device and plan what it says that it supports: a yes that `plan` denies is a fault."""
    if status.backend is None or not status.devices:
        return status
    device = status.devices[0]
    try:
        with stage("opened", f"open({device}) raised"):
            session: object = status.backend.open(device, SessionOptions())
        if not isinstance(session, Session):
            raise Fell(Fault("opened", f"open({device}) returned {type(session).__name__}, not a Session"))
        with stage("opened", f"closing {device} raised"), session:
            _plan_canonical(session)
    except Fell as fell:
        return replace(status, fault=fell.fault, reached="available")
    return replace(status, reached="opened")


def _plan_canonical(session: Session) -> None:
    for request in canonical_requests():
        if not session.supports(request):
            continue
        claim = f"supports({request.op}) says yes, and plan({request.op}) raised"
        with stage("opened", claim), contextlib.suppress(ResourceError):
            session.plan(request)


def main(distribution: str, name: str, value: str, report: str) -> None:
    """The child: writes each stage to `report` as it is entered, and the whole status at the end."""
    with open(report, "a", buffering=1, encoding="utf-8") as file:

        def tell(**line: object) -> None:
            file.write(json.dumps(line) + "\n")

        found = next(d for d in discover(None) if d.key == (distribution, name, value))
        status = load(found, lambda entered: tell(entering=entered))
        tell(entering="opened")
        status = replace(status, backends=tuple(open_and_plan(proven(backend)) for backend in status.backends))
        tell(status=status.to_json())


if __name__ == "__main__":
    main(*sys.argv[1:])
