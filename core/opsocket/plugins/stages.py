"""Running a stranger's code one stage at a time, so that whatever it raises becomes that stage's fault."""

from __future__ import annotations

import importlib
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from opsocket.operators import PluginError
from opsocket.plugins.status import STAGES, Fault, Stage

_MACHINERY = ("<frozen importlib", os.path.dirname(importlib.__file__), os.path.dirname(__file__))
_LONGEST_CAUSE, _LONGEST_TRACEBACK = 500, 20_000


class Fell(Exception):
    """A stage was not reached."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.cause)
        self.fault = fault


@contextmanager
def stage(name: Stage, doing: str, hint: str = "") -> Iterator[None]:
    """Turn anything raised inside into `Fell`, SystemExit included; only the user's own interrupt passes.

    A `PluginError` brings its own stage and cause (a class refused when it was defined); of any other exception the
    cause is "`doing`: type: message".
    """
    try:
        yield
    except (Fell, KeyboardInterrupt):
        raise
    except BaseException as error:
        trace = "".join(traceback.format_exception(type(error), error, _from_plugin(error)))[-_LONGEST_TRACEBACK:]
        if isinstance(error, PluginError):
            at: Stage = next((s for s in STAGES if s == error.stage), name)
            raise Fell(Fault(at, f"{error.distribution}: {error.cause}", error.hint or hint, trace)) from None
        raise Fell(Fault(name, f"{doing}: {describe(error)}", hint, trace)) from None


def _from_plugin(error: BaseException) -> TracebackType | None:
    """The traceback from the first frame that is neither ours nor the import system's."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_MACHINERY):
        trace = trace.tb_next
    return trace or error.__traceback__


def describe(error: BaseException) -> str:
    """Type and message on one line, bounded, even where the exception's own `__str__` fails."""
    lines = traceback.format_exception_only(error)
    line = next((line for line in lines if not line[:1].isspace()), lines[-1])
    text = " ".join(line.split())
    return text if len(text) <= _LONGEST_CAUSE else text[: _LONGEST_CAUSE - 3] + "..."


def reached_before(fault: Fault) -> Stage:
    """The last stage passed by what fell with this fault."""
    return STAGES[max(STAGES.index(fault.stage) - 1, 0)]
