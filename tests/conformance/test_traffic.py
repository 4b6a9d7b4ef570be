"""Recorded traffic: the recording covers what an engine does, broken files are refused, replays pass and see faults."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources

import numpy as np
import pytest

from opsocket.operators import ContractError, FormatError
from opsocket_conformance.case import Case, parse_case
from opsocket_conformance.checks import CHECKS
from opsocket_conformance.power.fault import Fault, FaultySession
from opsocket_conformance.profiles import PROFILES
from opsocket_conformance.runner import run_case
from opsocket_conformance.traffic.check import Traffic, cases
from opsocket_conformance.traffic.recorded import load, recorded_calls
from opsocket_conformance.traffic.replay import REPLAYS
from opsocket_conformance.verdicts import Verdict

CALLS = recorded_calls()
FIRST = {op: next(n for n, call in enumerate(CALLS) if call.op == op) for op in REPLAYS}


def of(op):
    return [call for call in CALLS if call.op == op]


def test_the_recording_holds_every_operator_of_a_step():
    assert {call.op for call in CALLS} == set(REPLAYS)
    for dtype in ("bf16", "f16", "f32"):
        assert {call.request(dtype).op for call in CALLS} == set(REPLAYS)


def test_the_recording_holds_what_an_engine_does():
    """Prefill, decoding and both at once; blocks that sequences share; copies of blocks; penalties; long sequences."""
    q_lens = [np.diff(call.arrays["q_indptr"]) for call in of("attention")]
    assert any((lens == 1).all() and len(lens) >= 4 for lens in q_lens)
    assert any((lens == 1).any() and (lens > 1).any() for lens in q_lens)
    assert any((lens > 20).all() for lens in q_lens)
    tables = [call.arrays["block_table"] for call in of("attention")]
    assert any(len(table) > 1 and len(np.unique(table[:, 0])) < len(table) for table in tables)
    assert max(int(call.arrays["kv_lens"].max()) for call in of("attention")) > 300
    assert any(len(call.arrays["history_ids"]) for call in of("sample"))
    assert all(len(call.arrays["pairs"]) for call in of("cache_copy_blocks"))


@pytest.mark.parametrize("op", [op for op in REPLAYS if op not in ("embedding", "sample")])
def test_a_call_of_each_operator_passes(op, session):
    result = run_case(Case(Traffic(FIRST[op], "bf16")), session, 0, 60.0)
    assert result.verdict is Verdict.PASS, result.messages


def test_every_replay_of_a_type_belongs_to_the_decoder_of_that_type():
    decoder = {profile.name: profile for profile in PROFILES}
    for case in cases():
        name = {"bf16": "decoder", "f16": "decoder-f16", "f32": "decoder-f32"}[case.check.dtype]
        assert decoder[name].includes(case.check.features()), case.id
        assert parse_case(case.id, CHECKS) == case


def test_a_number_beyond_the_recording_is_refused():
    with pytest.raises(ContractError, match=r"case\.n"):
        parse_case(f"traffic[n={len(CALLS)},dtype=bf16]#0", CHECKS)


def _table_off(batch):
    table = np.array(batch.block_table)
    return replace(batch, block_table=np.where(table > 0, table - 1, table))


FAULTS = {
    "attention: table off by one": ("attention", {"batch": _table_off}),
    "attention: last key dropped": (
        "attention",
        {"batch": lambda b: replace(b, kv_lens=np.maximum(np.array(b.kv_lens) - 1, 0))},
    ),
    "cache_write: slots off by one": (
        "cache_write",
        {"batch": lambda b: replace(b, slots=b.slots ^ 1)},
    ),
    "cache_copy_blocks: nothing is copied": ("cache_copy_blocks", {"batch": lambda b: replace(b, pairs=b.pairs[:0])}),
    "rope: positions off by one": (
        "rope",
        {"args": lambda args, kwargs: ((args[0], args[1] + 1, *args[2:]), kwargs)},
    ),
    "take_rows: rows in reverse": (
        "take_rows",
        {"args": lambda args, kwargs: ((args[0], args[1].flip(0), *args[2:]), kwargs)},
    ),
    "matmul: a row of zeros": ("matmul", {"result": lambda plan, y, args: (y[-1].zero_(), y)[1]}),
    "rms_norm: no residual": (
        "rms_norm",
        {"args": lambda args, kwargs: ((*args[:2], *(part * 0 for part in args[2:])), kwargs)},
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_replays_see_faults(name, session):
    op, hooks = FAULTS[name]
    faulty = FaultySession(session, Fault(op, **hooks))
    number = FIRST[op]
    if op == "take_rows":
        number += 1  # the first takes one row
    if op == "rms_norm":
        number = next(n for n, call in enumerate(CALLS) if call.op == op and call.request("f32").spec.residual)
    result = run_case(Case(Traffic(number, "f32")), faulty, 0, 60.0)
    assert result.verdict is Verdict.FAIL, result


# ---- files from strangers


@pytest.fixture
def broken(tmp_path):
    """broken(change) -> the path of the recording after `change` has been at it."""
    text = resources.files("opsocket_conformance.traffic").joinpath("smollm2.json").read_text(encoding="utf-8")

    def broken(change):
        data = json.loads(text)
        changed = change(data)
        path = tmp_path / "traffic.json"
        path.write_text(changed if isinstance(changed, str) else json.dumps(data), encoding="utf-8")
        return path

    return broken


def _attention_call(data):
    return next(call for call in data["calls"] if "block_table" in call["arrays"])


BROKEN = {
    "no JSON": (lambda data: "{", "file"),
    "another schema": (lambda data: data.update(schema=2), "schema"),
    "a huge file": (lambda data: " " * (1 << 21), "file"),
    "no calls": (lambda data: data.pop("calls") and None, "calls"),
    "a request of no operator": (lambda data: data["requests"][0].update(op="nothing"), "requests[0]"),
    "a request beyond the list": (lambda data: data["calls"][0].update(request=999), "calls[0].request"),
    "negative rows": (lambda data: data["calls"][0].update(rows=-1), "calls[0].rows"),
    "an unknown key": (lambda data: data["calls"][0].update(code="x"), "calls[0]"),
    "an unknown array": (lambda data: data["calls"][0]["arrays"].update(code=[1]), "arrays.code"),
    "a number beyond 32 bits": (lambda data: _attention_call(data)["arrays"].update(kv_lens=[1 << 40]), "kv_lens"),
    "text among the numbers": (lambda data: _attention_call(data)["arrays"].update(kv_lens=["1"]), "kv_lens"),
    "a shape of other numbers": (
        lambda data: _attention_call(data)["shapes"].update(block_table=[1, 1 << 60]),
        "table",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_recording_is_refused_by_name(name, broken):
    change, where = BROKEN[name]
    with pytest.raises(FormatError) as error:
        load(broken(lambda data: change(data)))
    assert where in str(error.value)
