"""Speed mode: which cases are timed, what they have to move, that cold is cold, and what the report says. Times
themselves are never held against anything."""

from __future__ import annotations

from dataclasses import replace

import jsonschema
import pytest

from opsocket_conformance import isolation
from opsocket_conformance.case import parse_case
from opsocket_conformance.checks import CHECKS
from opsocket_conformance.compare import compare
from opsocket_conformance.planned import plan_run
from opsocket_conformance.power.fault import Fault, FaultySession
from opsocket_conformance.report import terminal
from opsocket_conformance.report.html import html
from opsocket_conformance.report.reading import schema
from opsocket_conformance.runner import run
from opsocket_conformance.speed import limit as speed_limit
from opsocket_conformance.speed import run as speed_run
from opsocket_conformance.speed.limit import Limit
from opsocket_conformance.speed.measure import Timed, Untimed, rotation, time_case
from opsocket_conformance.speed.recorder import Recorder
from opsocket_conformance.speed.run import entry, with_speed
from opsocket_conformance.speed.selection import choose
from opsocket_conformance.speed.timing import seconds_per_call
from opsocket_conformance.verdicts import Result, Verdict
from opsocket_conformance.verify import wholeness

MIB = 1 << 20
ADD = "add[t=7,dtype=bf16,width=536]#0"
MATMUL = "matmul[m=3,n=136,k=256,w=bf16,dtype=bf16]#0"
WHOLE_PANELS = "matmul[m=3,n=160,k=256,w=bf16,dtype=bf16]#0"
WRITE = "cache_write[hkv=3,d=64,bs=16,dtype=bf16,kv=i8.token_head]#0"


def case_of(text):
    return parse_case(text, CHECKS)


def recorder_of(session, text):
    case = case_of(text)
    bench = Recorder(session=session, operator=case.check.operator)
    case.check.run(bench, case.rng(0))
    assert not bench.failures
    return bench


SLOTS = 7 * 16


@pytest.mark.parametrize(
    ("text", "moved"),
    [
        (ADD, 3 * 7 * 536 * 2),
        (WHOLE_PANELS, 2 * (3 * 256 + 160 * 256 + 3 * 160)),
        ("matmul[m=3,n=160,k=256,w=q8_0,dtype=f32]#0", 4 * 3 * 256 + 160 * 256 * 34 // 32 + 4 * 3 * 160),
        ("embedding[n=96,k=256,w=f32,dtype=bf16,t=3]#0", 3 * 8 + 3 * 256 * 4 + 3 * 256 * 2),
        # decode: 37 keys of which 3 are ahead, 1, 131 less 1, and 20 less 19; the row with 11 keys has no query.
        ("attention[hq=14,hkv=2,d=64,q=bf16,batch=decode,x=normal]#0",
         2 * 4 * 14 * 64 * 2 + (34 + 1 + 130 + 1) * 2 * (64 + 64) * 2),
        ("attention[hq=14,hkv=2,d=64,q=bf16,batch=tail,x=normal,kv=i8.token_head,lse=1]#0",
         4 * 14 * (2 * 64 * 2 + 4) + (37 + 131 + 2 + 16) * 2 * (64 + 64 + 2 * 4)),
        # A window of 8 keys to the left: at most 9 of each.
        ("attention[hq=14,hkv=2,d=64,q=bf16,batch=tail,x=normal,left=8]#0",
         2 * 4 * 14 * 64 * 2 + (9 + 9 + 2 + 9) * 2 * (64 + 64) * 2),
        ("attention[hq=14,hkv=2,d=64,bs=0,q=bf16,batch=tail,x=normal]#0",
         2 * 4 * 14 * 64 * 2 + (37 + 131 + 2 + 16) * 2 * (64 + 64) * 2),
        ("moe_sort[t=7,experts=23,k=4]#0", 8 * (7 * 4 + 7 * 4 + 24 + 7 * 4)),
        ("moe_combine[t=7,dtype=bf16,width=576,k=8]#0", 2 * 576 * (7 * 8 + 7) + (8 + 4) * 7 * 8),
        (WRITE, SLOTS * 3 * (2 * 64 * 2 + 2 * 64 + 2 * 4)),
        ("cache_copy_blocks[hkv=3,d=64,bs=16,dtype=bf16,how=rotate]#0", 2 * 5 * 16 * 3 * 2 * 64 * 2),
    ],
)  # fmt: skip
def test_bytes_by_hand(session, text, moved):
    assert recorder_of(session, text).recorded.moved == moved


def test_shared_pages_are_read_once(session):
    shared = recorder_of(session, "attention[hq=14,hkv=2,d=64,q=bf16,batch=shared,x=normal]#0").recorded.moved
    rows = 1 + 1 + 3 + 1
    keys = 139 + (150 - 1) + 133 + (47 - 2) - (128 + 128 + 32)
    assert shared == 2 * rows * 14 * 64 * 2 + keys * 2 * 128 * 2


def addresses(recorded):
    """Of every array of a run: where its bytes are."""
    found = []
    for value in (*recorded.args, *recorded.kwargs.values()):
        planes = getattr(value, "planes", None)
        arrays = planes.values() if planes is not None else [value]
        found += [array.data_ptr() for array in arrays if hasattr(array, "data_ptr")]
    return found


@pytest.mark.parametrize("text", [ADD, WRITE, "attention[hq=14,hkv=2,d=64,q=bf16,batch=tail,x=normal]#0"])
def test_cold_runs_on_arrays_of_their_own_that_hold_the_same(session, text):
    bench = recorder_of(session, text)
    copies = rotation(bench, bench.recorded, MIB)
    assert len(copies) * bench.recorded.moved >= 2 * MIB
    places = [place for run_ in (bench.recorded, *copies) for place in addresses(run_)]
    assert len(places) == len(set(places)) > len(copies)
    for one in copies[:2]:
        for mine, theirs in zip(one.args, bench.recorded.args, strict=True):
            if hasattr(mine, "data_ptr"):
                bench.same_bits("copy", mine, bench.bits(theirs))
    assert not bench.failures


def test_a_copied_cache_gives_the_same_attention(session):
    bench = recorder_of(session, "attention[hq=14,hkv=2,d=64,q=bf16,batch=decode,kv=i8.channel,x=normal]#0")
    want, got = bench.recorded.call()()[0], bench.copy(bench.recorded).call()()[0]
    rows = int(bench.recorded.batch.q_indptr[-1])
    bench.same_bits("out", got[:rows], bench.bits(want[:rows]))
    assert not bench.failures


def test_a_packed_weight_is_packed_again(session):
    bench = recorder_of(session, MATMUL)
    copy = bench.copy(bench.recorded)
    assert copy.args[1] is not bench.recorded.args[1]
    bench.same_bits("y", copy.call()(), bench.bits(bench.recorded.call()()))
    assert not bench.failures


def test_each_sample_goes_on_where_the_last_one_stopped():
    made = []
    calls = [lambda number=number: made.append(number) for number in range(5)]
    again = [lambda: made.append(9)]
    warm, cold = seconds_per_call(again, calls, synchronize=lambda: None, budget_s=0.0)
    others = [number for number in made if number != 9]
    assert min(warm, cold) > 0
    assert others == [number % 5 for number in range(len(others))]
    assert len(others) > 5


def test_what_passed_and_is_plain_is_chosen_and_what_is_named(session):
    cases = plan_run("default", ()).cases
    passed = {case.id: speed_result(case, Verdict.PASS) for case in cases}
    chosen = [case.id for case in choose(cases, list(passed.values()))]
    operators = {case_of(id).check.operator for id in chosen}
    assert {"attention", "matmul", "embedding", "cache_write", "cache_read", "rms_norm", "rope"} <= operators
    assert {case_of(id).check.name for id in chosen} == operators, "no laws, captures or contracts"
    assert len(chosen) < 60
    assert not any("f32]" in id or "strided" in id for id in chosen)
    named = "rope[t=11,dtype=bf16,heads=5,d=128"
    assert not any(named in id for id in chosen)
    assert any(named in case.id for case in choose(cases, list(passed.values()), named))
    passed[MATMUL] = replace(passed[MATMUL], verdict=Verdict.FAIL)
    assert MATMUL not in [case.id for case in choose(cases, list(passed.values()), MATMUL)]


def speed_result(case, verdict):
    return Result(case.id, case.check.operator, verdict)


def test_a_case_that_fails_again_is_not_timed(session):
    broken = FaultySession(session, Fault("add", result=lambda plan, result, args: result * 2))
    case = case_of(ADD)
    (verdict,) = run([case], broken)
    assert verdict.verdict is Verdict.FAIL
    assert choose([case], [verdict], "add") == []
    told = time_case(case, broken, 0, 60.0, MIB)
    assert isinstance(told, Untimed)
    assert "fails" in told.why


def test_an_out_of_place_session_is_timed(out_of_place):
    assert isinstance(time_case(case_of(ADD), out_of_place, 0, 60.0, MIB, budget_s=0.0), Timed)


def test_a_share_only_where_no_cache_holds_the_data():
    limit = Limit(20.0, "add", 32 * MIB, "detected")
    timed = Timed(ADD, "add", seconds=1e-3, warm_seconds=5e-4, moved=10**7, rotated_bytes=64 * MIB)
    assert (entry(timed, limit)["gb_s"], entry(timed, limit)["fraction_of_limit"]) == (10.0, 0.5)
    assert entry(replace(timed, rotated_bytes=32 * MIB), limit)["fraction_of_limit"] is None
    assert entry(timed, replace(limit, gb_s=None))["fraction_of_limit"] is None


def test_the_limit_is_what_something_reached(session, out_of_place, monkeypatch):
    monkeypatch.setattr(speed_limit, "_LARGEST", MIB)
    monkeypatch.setattr(speed_limit, "_BUDGET_S", 0.0)
    for one in (session, out_of_place):
        found = speed_limit.measure_limit(one)
        assert found.gb_s > 0
        assert found.by == "a plain NumPy read" or found.by.endswith("through the session")
        assert found.cache_bytes >= MIB
    moved = {name: start(session)[1] for name, start in speed_limit._candidates(MIB, False)}
    assert moved["add, bf16, through the session"] == 3 * MIB
    assert moved["take_rows, f32, through the session"] == 2 * MIB + 8 * 64
    assert moved["one-row matmul, f32, through the session"] == MIB + 4 * (4096 + 64)


@pytest.fixture
def told(session):
    """told(report, cases) -> the report with speed; the limit is given, cases are timed on the session."""

    def ask(asked):
        if "case" not in asked:
            return vars(Limit(20.0, "add, bf16, through the session", MIB, "assumed"))
        if asked["case"] == MATMUL:
            raise isolation.Died("its process was ended by SIGSEGV")
        return vars(time_case(case_of(asked["case"]), session, 0, 60.0, MIB, budget_s=0.0))

    return lambda report, cases: with_speed(report, cases, ask, 0, 60.0)


def test_the_report_has_it(make_report, told):
    report = told(make_report("rms_norm"), [case_of(ADD), case_of(MATMUL), case_of(WRITE)])
    jsonschema.validate(report, schema())
    assert [row["case"] for row in report["speed"]] == [ADD, WRITE]
    assert report["speed_untimed"] == [{"case": MATMUL, "why": "its process was ended by SIGSEGV"}]
    assert all(row["rotated_bytes"] > MIB and row["fraction_of_limit"] > 0 for row in report["speed"])
    assert wholeness(report) == []
    page = html(report)
    assert "Speed was not measured" not in page
    for words in ("20 GB/s (add, bf16, through the session)", "1 MiB (assumed)", "cold", "warm", "SIGSEGV", WRITE):
        assert words in page
    assert any(line.startswith(WRITE) for line in terminal.lines(report))
    slower = {**report, "speed": [{**row, "seconds": 3 * row["seconds"]} for row in report["speed"]]}
    assert {change.kind for change in compare(report, slower) if change.subject == "speed"} == {"slower"}


def test_a_worker_times_a_case_and_a_dead_one_is_not_asked_again(monkeypatch):
    from opsocket.runtime import RuntimeConfig

    config = RuntimeConfig().override("argument", {"backend": "cpu"})
    made = []

    def worker(config):
        if made:
            raise isolation.NotOpened("the device fell off the bus")
        made.append(isolation.Worker(config))
        return made[0]

    monkeypatch.setattr(speed_run, "Worker", worker)
    asked = {"case": ADD, "seed": 0, "limit_s": 60.0, "cache_bytes": MIB}
    with speed_run.isolated(config) as ask:
        told = ask(asked)
        made[0].kill()
        with pytest.raises(isolation.Died):
            ask(asked)
        with pytest.raises(isolation.NotOpened):
            ask(asked)
    assert told["case"] == ADD
    assert told["seconds"] > 0
