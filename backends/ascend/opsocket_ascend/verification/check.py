"""A call, made once more with nothing computed: does the wheel that is here take it, and what does it make of it?

`python -m opsocket_ascend.verification.check`, in an environment that asks for an emulated NPU, answers a line of JSON
for each line: of a recorded call, or of the name of a control.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib import resources
from typing import Any, Final

from opsocket.operators import ContractError
from opsocket_ascend.mode import VARIABLE
from opsocket_ascend.socs import find_soc

ACCEPTED, AGREES = "accepted", "agrees"
_MISSING: Final = (
    "Unknown keyword argument",
    "positional argument(s)",
    "missing value for argument",
    "Expected a value",
)
"""How torch begins or words what does not fit a schema."""

GOLDEN: Final = "golden.json"
WRITTEN_OF: Final = {"A2": "A2", "A3": "A2", "310P": "310P"}
"""By a chip's family, the one whose calls stand for it in `GOLDEN`: A3 has to ask for what A2 does."""

_INDEXED: Final = (
    "aten::index",
    "aten::index_put",
    "aten::index_put_",
    "aten::_index_put_impl_",
    "aten::_unsafe_index",
)


def golden(family: str) -> dict[str, list[str]]:
    """What CANN is asked for by calls of the vendor's operators on chips of a family, as it was written down."""
    text = resources.files("opsocket_ascend.verification").joinpath(GOLDEN).read_text("utf-8")
    found: dict[str, list[str]] = json.loads(text)[WRITTEN_OF[family]]
    return found


class Checker:
    """Of one process, whose NPU is emulated and leaves calls unanswered."""

    def __init__(self) -> None:
        from opsocket_ascend.emulator import calls as emulated
        from opsocket_ascend.emulator.load import load

        load()
        import torch

        torch.npu.set_device(0)
        # Weights are cast where private formats are allowed: a cast that is made once more has to be, too.
        torch.npu.config.allow_internal_format = True
        emulated.leave_unanswered()
        emulated.observe(lambda operator, arguments: self._asked.append(emulated.written(operator, arguments)))
        self._asked: list[str] = []
        self._golden = golden(find_soc(os.environ[VARIABLE]).family)

    def answer(self, record: str) -> dict[str, Any]:
        """kernel, variant, facts and problems, as `opsocket.operators.Artifact` has them."""
        from opsocket_ascend.verification import calls, controls

        if record in controls.MISUSES:
            return self._misuse(record)
        call = calls.Call.loads(record)
        facts, problems = self.check(call)
        variant = "; ".join(call.aclnn or (call.asked,))
        return {"kernel": call.name, "variant": variant, "facts": facts, "problems": problems}

    def check(self, call: Any) -> tuple[dict[str, Any], list[str]]:
        """Facts and problems of a call. The schema first: without it there is nothing to ask of the others."""
        facts: dict[str, Any] = {"schema": ACCEPTED, "Meta function": AGREES, "C++": ACCEPTED}
        try:
            function = call.function()
        except AttributeError as error:
            return {**facts, "schema": "unknown"}, [f"schema: {error}"]
        facts["Meta function"], problems = self._by_meta(call, function)
        if any(text.startswith("schema") for text in problems):
            return {**facts, "schema": "refused"}, problems
        if _depends_on_content(call, function):
            return {**facts, "C++": "not asked again: its shapes depend on content"}, problems
        asked, problem = self._by_chip(call, function)
        if problem:
            return {**facts, "C++": "refused"}, [*problems, problem]
        facts["aclnn"] = tuple(dict.fromkeys(text.partition("(")[0] for text in asked))
        if call.aclnn is not None and asked != list(call.aclnn):
            problems.append(f"aclnn: {'; '.join(asked) or 'nothing'} was asked for, and not {'; '.join(call.aclnn)}")
        written = self._golden.get(call.asked)
        if written is not None and asked != written:
            problems.append(
                f"golden trace: {'; '.join(asked) or 'nothing'}, where {'; '.join(written)} is written down"
            )
        return {**facts, "golden trace": "" if written is None else "the same"}, problems

    def _by_meta(self, call: Any, function: Any) -> tuple[str, list[str]]:
        from opsocket_ascend.verification import calls

        try:
            result = function(
                *calls.decode(call.args, "meta"), **{k: calls.decode(v, "meta") for k, v in call.kwargs.items()}
            )
        except NotImplementedError:  # torch's word for an operator without one; the report says "none"
            return "none", []
        except Exception as error:
            text = _first_line(error)
            is_schema = any(words in text for words in _MISSING)
            return "refused", [f"{'schema' if is_schema else 'Meta function'}: {text}"]
        expected, got = calls.shapes(call.results), calls.shapes(calls.encode(result))
        if call.results is not None and expected != got:
            return "differs", [f"Meta function: results {got}, and not {expected}"]
        return AGREES, []

    def _by_chip(self, call: Any, function: Any) -> tuple[list[str], str]:
        from opsocket_ascend.verification import calls

        args = calls.decode(call.args, "npu")
        kwargs = {name: calls.decode(value, "npu") for name, value in call.kwargs.items()}
        self._asked = []
        try:
            function(*args, **kwargs)
        except Exception as error:
            return self._asked, f"torch_npu: {_first_line(error)}"
        return self._asked, ""

    def _misuse(self, name: str) -> dict[str, Any]:
        from opsocket_ascend.verification import controls

        misuse = controls.MISUSES[name]
        facts, theirs = self.check(misuse.call)
        said = _refusal(misuse.ours)
        vendor = f"torch_npu says: {'; '.join(theirs)}" if theirs else "torch_npu takes it"
        return {
            "kernel": misuse.call.name,
            "variant": name,
            "facts": facts,
            "problems": [f"{said}; {vendor}"] if said else theirs,
        }


def _refusal(call: Callable[[], object]) -> str:
    try:
        call()
    except ContractError as error:
        return f"ContractError: {error}"
    return ""


def _depends_on_content(call: Any, function: Any) -> bool:
    """Whether torch has to read from the device to know what to return: what was computed is not there to be read."""
    import torch

    if torch.Tag.data_dependent_output in function.tags:
        return True
    if function._schema.name not in _INDEXED:
        return torch.Tag.dynamic_output_shape in function.tags
    # Indexing has the tag, and deserves it for masks alone.
    return any(index is not None and index["tensor"] in ("bool", "uint8") for index in call.args[1])


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def main() -> None:
    # What libraries print is not the answer.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    checker = Checker()
    for line in sys.stdin:
        answers.write(json.dumps(checker.answer(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
