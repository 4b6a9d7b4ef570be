"""What CANN is asked for by each call of the vendor's operators that the smoke tier makes, for `opsocket verify` to
compare with: where a release of torch_npu makes something else of a call, that shows there.

`OPSOCKET_EMULATE=Ascend910B3 python tests/ascend/emulated/golden.py` writes anew what chips of that family ask for, and
leaves the others' as it is.
"""

from __future__ import annotations

import json
from pathlib import Path

import opsocket
from opsocket.operators import Session
from opsocket_conformance.cases import cases_of
from opsocket_conformance.runner import run_case
from opsocket_conformance.verdicts import Verdict

FOLDER = Path(__file__).parents[3] / "backends" / "ascend" / "opsocket_ascend" / "verification"
_PRODUCTS = ("aten::mm.", "aten::matmul.")


def written_down(session: Session, texts: list[str]) -> dict[str, list[str]]:
    """The calls that are kept of those that these cases make. Each case has to pass."""
    from opsocket_ascend.verification.calls import Call
    from opsocket_ascend.verification.recorder import Recorder

    found: dict[str, list[str]] = {}
    with Recorder() as recorder:
        for case in cases_of("smoke"):
            if case.id in texts:
                result = run_case(case, session, 0, 300.0)
                if result.verdict not in (Verdict.PASS, Verdict.UNSUPPORTED):
                    raise AssertionError(f"{case.id}: {result.verdict.name}: {result.messages}")
        for call in map(Call.loads, recorder.take()):
            if call.operator.startswith(("npu::", *_PRODUCTS)) and call.aclnn is not None:
                found[call.asked] = list(call.aclnn)
    return dict(sorted(found.items()))


def main() -> None:
    from opsocket_ascend.socs import find_soc
    from opsocket_ascend.verification.check import GOLDEN, WRITTEN_OF

    with opsocket.open("ascend:0") as session:
        found = written_down(session, [case.id for case in cases_of("smoke")])
        family = WRITTEN_OF[find_soc(session.device.arch).family]
    file = FOLDER / GOLDEN
    file.write_text(json.dumps(json.loads(file.read_text()) | {family: found}, indent=1) + "\n")
    print(f"{len(found)} calls: {file}")


if __name__ == "__main__":
    main()
