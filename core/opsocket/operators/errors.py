"""The five ways an operator call ends other than with a result.

Each carries its facts as attributes, so that a caller can act on them without parsing a message, and a
message that names the argument, what was wanted and what came. After `ContractError`, `Unsupported` or
`ResourceError` caches and outputs are as they were before the call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Reason:
    """Why a request is not served: a machine-readable code, the field at fault, what it held and what would do.

    `want` is a value, a list of values, or a sentence when the wanted set can't be listed.
    """

    code: str
    field: str
    got: Any
    want: Any

    def __post_init__(self) -> None:
        for name in ("got", "want"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))

    def __str__(self) -> str:
        return f"{self.field}={self.got!r}: wanted {self.want}" + (f" [{self.code}]" if self.code != self.field else "")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class OpsocketError(Exception):
    """Base of every error that opsocket raises on purpose."""


class Unsupported(OpsocketError):
    """No kernel of this backend serves the request; `reasons` are those that `supports` gives."""

    def __init__(self, reasons: Sequence[Reason], *, request: object = None, backend: str = "") -> None:
        self.reasons = tuple(reasons)
        self.request = request
        self.backend = backend
        where = f"{backend}: " if backend else ""
        super().__init__(where + "unsupported: " + "; ".join(map(str, self.reasons)))


class ContractError(OpsocketError):
    """The caller broke the operator's contract: names the argument, what was wanted and what came."""

    def __init__(self, argument: str, want: object, got: object) -> None:
        self.argument = argument
        self.want = want
        self.got = got
        super().__init__(f"{argument}: wanted {want}, got {got}")


class ResourceError(OpsocketError):
    """There is not enough of something: `need` and `have` are in the same unit, which `what` names."""

    def __init__(self, what: str, need: object, have: object) -> None:
        self.what = what
        self.need = need
        self.have = have
        super().__init__(f"not enough {what}: need {need}, have {have}")


class BackendError(OpsocketError):
    """A kernel failed while it ran. Nothing is retried elsewhere."""

    def __init__(self, operator: str, plan: str, cause: BaseException | str) -> None:
        self.operator = operator
        self.plan = plan
        self.cause = cause
        text = cause if isinstance(cause, str) else f"{type(cause).__name__}: {cause}"
        super().__init__(f"{operator} in {plan} failed: {text}")


class PluginError(OpsocketError):
    """A plugin fell out on its way in; `stage` says where.

    Stages, in order: discovered, compatible, imported, validated, available, opened.
    """

    def __init__(
        self, stage: str, distribution: str, cause: str, *, traceback: str | None = None, hint: str = ""
    ) -> None:
        self.stage = stage
        self.distribution = distribution
        self.cause = cause
        self.traceback = traceback
        self.hint = hint
        super().__init__(f"{distribution}: not {stage}: {cause}" + (f". {hint}" if hint else ""))


class FormatError(OpsocketError):
    """A model file or a report is not what it says it is: names the file, the place in it and what is wrong."""

    def __init__(self, path: object, where: str, problem: str) -> None:
        self.path = str(path)
        self.where = where
        self.problem = problem
        super().__init__(f"{self.path}: {where}: {problem}")
