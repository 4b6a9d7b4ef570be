"""Every chosen case makes the very calls that are written down, and passes."""

import importlib.util
import json
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("npu_traces", Path(__file__).with_name("traces.py"))
traces = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(traces)
GOLDEN = json.loads(traces.FILE.read_text())


def test_every_chosen_case_is_written_down():
    assert set(GOLDEN) == set(traces.CASES)


@pytest.mark.parametrize("case", traces.CASES)
def test_the_calls_are_those_written_down(session, case):
    assert traces.record(session, case) == GOLDEN[case]
