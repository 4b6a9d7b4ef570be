"""The cases as data: stable ids, what they cover, and that none is blind."""

from __future__ import annotations

import collections
import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsocket.operators import ContractError
from opsocket_conformance.case import TIERS, Case, parse_case, shard
from opsocket_conformance.cases import all_cases, cases_of
from opsocket_conformance.checks import CHECKS
from opsocket_conformance.cover import cover
from opsocket_conformance.coverage import attention_coverage
from opsocket_conformance.credit import credit, is_blind
from opsocket_conformance.operators.attention.batches import BATCHES
from opsocket_conformance.operators.attention.knobs import Attention
from opsocket_conformance.preconditions.breaches import BREACHES
from opsocket_conformance.preconditions.calls import CALLS
from opsocket_conformance.profiles import PROFILES, find_profiles
from opsocket_conformance.runner import run_case
from opsocket_conformance.verdicts import Result, Verdict

OPERATORS = {
    "add", "argmax", "attention", "cache_copy_blocks", "cache_move", "cache_read", "cache_write", "capture",
    "embedding", "grouped_matmul", "matmul", "merge_states", "moe_combine", "moe_route", "moe_sort",
    "quantize_activation", "rms_norm", "rope", "sample", "silu_mul", "take_rows",
}  # fmt: skip

EXPERTS = {"moe_route", "moe_sort", "moe_combine"}


def test_ids_are_unique_and_say_everything():
    cases = all_cases()
    assert len({case.id for case in cases}) == len(cases)
    for case in cases:
        assert parse_case(case.id, CHECKS) == Case(case.check, case.draw)


def test_ids_and_seeds_stay():
    """A change here breaks every rerun line and every exclusion that someone has written down."""
    case = Case(Attention(9, 3, d=80, q="f32", kv="i8.channel", left=7, cap=30.0, lse=True), 2)
    assert case.id == ("attention[hq=9,hkv=3,d=80,q=f32,kv=i8.channel,batch=decode,x=normal,left=7,cap=30.0,lse=1]#2")
    assert case.seed(0) == 21655450835013869598042206088143055492
    assert len({case.seed(0), case.seed(1), Case(case.check, 3).seed(0)}) == 3


@pytest.mark.parametrize(
    ("text", "argument"),
    [
        ("attention", "case"),
        ("attention[]", "case"),
        ("nothing[]#0", "case"),
        ("attention[heads=3]#0", "case.heads"),
        ("attention[hq=many]#0", "case.hq"),
        ("attention[lse=yes]#0", "case.lse"),
    ],
)
def test_an_id_that_is_none_names_what_is_wrong(text, argument):
    with pytest.raises(ContractError) as error:
        parse_case(text, CHECKS)
    assert error.value.argument == argument


def test_tiers_are_nested_and_every_operator_is_in_each():
    for smaller, larger in itertools.pairwise(TIERS):
        assert set(cases_of(smaller)) <= set(cases_of(larger))
    for tier in TIERS:
        assert {case.check.operator for case in cases_of(tier)} == OPERATORS


@pytest.mark.parametrize("count", [1, 3, 7])
def test_shards_are_a_partition_of_one_size(count):
    cases = cases_of("default")
    parts = [shard(cases, number, count) for number in range(1, count + 1)]
    assert collections.Counter(case.id for part in parts for case in part) == {case.id: 1 for case in cases}
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_every_pair_of_attention_knobs_and_every_triple_of_those_that_pick_a_kernel_occurs():
    cases = cases_of("default")
    covered = attention_coverage(cases, [Result(case.id, "attention", Verdict.PASS) for case in cases])
    assert covered["pairs"] == covered["of"] > 2000
    assert covered["triples"] == covered["of_triples"] > 2000
    fewer = attention_coverage(cases, [Result(case.id, "attention", Verdict.PASS) for case in cases_of("smoke")])
    assert fewer["pairs"] < covered["pairs"]
    assert fewer["triples"] < covered["triples"]


def test_no_case_of_attention_is_blind():
    """A sample of them: each sees some fault well enough to be believed, or has no key to see."""
    cases = [case for case in cases_of("default") if type(case.check) is Attention and case.check.batch != "longest"]
    for case in (*cases[::40], *(case for case in cases if case.check.x == "denormal")):
        noise = credit(case)
        assert not is_blind(noise), (case.id, noise)
        assert noise or case.check.batch == "none"


def test_knobs_that_carry_numbers_have_cases_of_their_own_that_see_them():
    wanted = {"alibi": "alibi +5%", "sinks": "sinks +0.05", "cap": "softcap +5%"}
    for knob, fault in wanted.items():
        alone = [Attention(q=q, batch=batch, **{knob: 5.0 if knob == "cap" else True})
                 for q in ("bf16", "f16", "f32") for batch in ("decode", "chunk")]  # fmt: skip
        planned = {case.check for case in cases_of("default")}
        for check in alone:
            check = replace(check, x="flat") if knob == "sinks" else check
            assert check in planned
            assert credit(Case(check))[fault] < 0.1


@given(st.lists(st.integers(1, 4), min_size=2, max_size=6), st.sampled_from([2, 3]))
def test_covering_arrays_cover(sizes, strength):
    knobs = {f"k{i}": tuple(range(n)) for i, n in enumerate(sizes)}
    strength = min(strength, len(knobs))

    def allowed(row):
        return not (row.get("k0") == 0 and row.get("k1") == 0)

    rows = cover(knobs, allowed, strength)
    assert all(allowed(row) and set(row) == set(knobs) for row in rows)
    for group in itertools.combinations(knobs, strength):
        for values in itertools.product(*(knobs[name] for name in group)):
            wanted = dict(zip(group, values, strict=True))
            completable = allowed(wanted) and any(
                allowed(dict(zip(knobs, full, strict=True)))
                for full in itertools.product(*knobs.values())
                if all(full[list(knobs).index(n)] == v for n, v in wanted.items())
            )
            assert any(wanted.items() <= row.items() for row in rows) == completable


def test_every_profile_asks_for_what_its_name_says():
    for tier in ("smoke", "default"):
        for profile in PROFILES:
            members = [case for case in cases_of(tier) if profile.includes(case.check.features())]
            assert members, (tier, profile.name)
    decoder = find_profiles(["decoder"])[0]
    operators = {case.check.operator for case in cases_of("default") if decoder.includes(case.check.features())}
    others = {"capture", "merge_states", "grouped_matmul", "quantize_activation", *EXPERTS}
    assert operators == OPERATORS - others
    moe = find_profiles(["moe"])[0]
    operators = {case.check.operator for case in cases_of("default") if moe.includes(case.check.features())}
    assert operators == {"grouped_matmul", *EXPERTS}
    batches = {
        c.check.batch
        for c in cases_of("default")
        if type(c.check) is Attention and decoder.includes(c.check.features())
    }
    assert batches == set(BATCHES) - {"needle", "longest"}


def test_a_profile_that_is_none_lists_those_that_are():
    with pytest.raises(ContractError, match="decoder-f16"):
        find_profiles(["decoder", "decoders"])


def test_every_call_is_broken_in_every_way_that_is_written_down():
    assert set(BREACHES) == set(CALLS)
    planned = {(c.check.call, c.check.breach) for c in cases_of("default") if c.check.name == "negative"}
    assert planned == {(call, breach) for call, breaches in BREACHES.items() for breach in breaches}


KNOB_CASES = {
    "scale +1%": ("attention[]#0", "attention[batch=chunk,x=peaky]#0", "attention[q=f32,batch=wide]#0"),
    "softcap +5%": (
        "attention[cap=5.0]#0",
        "attention[x=saturate,cap=30.0]#0",
        "attention[q=f32,batch=chunk,cap=30.0]#0",
    ),
    "alibi +5%": ("attention[alibi=1]#0", "attention[q=f32,batch=chunk,alibi=1]#0", "attention[bs=0,alibi=1,x=flat]#0"),
    "sinks +0.05": (
        "attention[sinks=1]#0",
        "attention[q=f32,batch=chunk,sinks=1]#0",
        "attention[batch=short,sinks=1]#0",
    ),
    "window_left +1": ("attention[left=7]#0", "attention[q=f16,left=0]#0", "attention[batch=chunk,x=needle,left=7]#0"),
    "window_left -1": ("attention[left=7]#0", "attention[q=f16,left=16]#0", "attention[batch=chunk,x=needle,left=7]#0"),
    "window_right +1": (
        "attention[mask=full,right=5,batch=chunk]#0",
        "attention[q=f32,mask=full,right=0,batch=chunk]#0",
    ),
}


@pytest.mark.parametrize(("knob", "id"), [(knob, id) for knob, ids in KNOB_CASES.items() for id in ids])
def test_no_knob_is_blind(session, knob, id):
    """These cases can see a small fault in the knob, and see none."""
    reading = run_case(parse_case(id, CHECKS), session, 0, 60.0).filters[knob]
    assert reading.credited
    assert abs(reading.t) < 0.1


def test_flat_inputs_earn_no_credit_for_the_scale(session):
    assert not run_case(parse_case("attention[x=flat]#0", CHECKS), session, 0, 60.0).filters["scale +1%"].credited
