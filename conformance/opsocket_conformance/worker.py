"""A worker: a process that opens a session and runs the cases it is told, one line of JSON each way.

It is started by `isolation`, never by hand. What it prints goes to a file that is quoted if it dies. A watchdog that
needs no interpreter lock ends it, with the stack of every thread, where a kernel does not return.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from dataclasses import asdict
from typing import IO, Any

from opsocket.operators import Ladder, OpsocketError, Reason, Session
from opsocket_conformance.verdicts import Filtered, Result, Verdict

CONTROL = "control of the ladder: "
"""Begins the name of a fault that is one of the backend's own wrong kernels."""

GRACE_S = 5.0
"""How much longer than its limit a case may take before its process is ended."""


def result_to_json(result: Result) -> dict[str, Any]:
    return {**asdict(result), "verdict": result.verdict.value, "reasons": [r.to_json() for r in result.reasons]}


def result_from_json(data: dict[str, Any]) -> Result:
    filters = {knob: Filtered(**reading) for knob, reading in data["filters"].items()}
    reasons = tuple(Reason(**reason) for reason in data["reasons"])
    messages, notes = tuple(data["messages"]), tuple(data["notes"])
    launched = {owner: tuple(records) for owner, records in data["launched"].items()}
    texts: dict[str, Any] = {"messages": messages, "notes": notes, "launched": launched}
    return Result(**{**data, "verdict": Verdict(data["verdict"]), "filters": filters, "reasons": reasons, **texts})


def main(requests: IO[str], answers: IO[str]) -> None:
    """Serve until the requests end. The first is the configuration; its answer: the device, or why there is none."""

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content, default=str) + "\n")
        answers.flush()

    from opsocket.runtime import RuntimeConfig, open_session

    try:
        session = open_session(RuntimeConfig().override("argument", json.loads(requests.readline())))
    except OpsocketError as error:
        answer({"failed": str(error)})
        return
    answer({"device": asdict(session.device)})

    from opsocket_conformance.case import parse_case
    from opsocket_conformance.checks import CHECKS
    from opsocket_conformance.runner import run_case
    from opsocket_conformance.speed import measure as speed

    ladder: Ladder | None = None
    with session:
        for line in requests:
            request = json.loads(line)
            if request.get("record") and ladder is None and (ladder := session.backend.ladder()) is not None:
                ladder.record(rehearse=request["record"] == "rehearse")
            if "speed" in request:
                faulthandler.dump_traceback_later(request["speed"]["limit_s"] + GRACE_S, exit=True)
                told = speed.answer(session, request["speed"])
                faulthandler.cancel_dump_traceback_later()
                answer(told)
                continue
            under_test = _broken(session, request["fault"]) if request["fault"] else session
            faulthandler.dump_traceback_later(request["limit_s"] + GRACE_S, exit=True)
            case = parse_case(request["case"], CHECKS)
            result = run_case(case, under_test, request["seed"], request["limit_s"], ladder)
            faulthandler.cancel_dump_traceback_later()
            answer(result_to_json(result))


def _broken(session: Session, name: str) -> Any:
    from opsocket_conformance.power.fault import FaultySession

    if name.startswith(CONTROL):
        from opsocket_conformance.ladder.controls import fault_of

        return FaultySession(session, fault_of(session, name.removeprefix(CONTROL)))
    from opsocket_conformance.power.catalogue import find_fault

    return FaultySession(session, find_fault(name))


if __name__ == "__main__":
    faulthandler.enable()
    _in, _out = (int(number) for number in sys.argv[1:3])
    main(os.fdopen(_in, encoding="utf-8"), os.fdopen(_out, "w", encoding="utf-8"))
