"""What core does around a kernel: it picks, validates, reports and wraps, once, for every backend."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from opsocket.operators import (
    AddSpec,
    BackendError,
    Bounds,
    CacheReadSpec,
    CacheSpec,
    CacheWriteSpec,
    ContractError,
    KVFormat,
    Reason,
    Request,
    SessionOptions,
    SiluMulSpec,
    SlotBatch,
    Unsupported,
)

F32 = KVFormat("f32")
CACHE = CacheSpec(3, 4, 2, 5, 7, F32, F32)


def test_plan_raises_the_reasons_that_supports_gives(session):
    for spec in (AddSpec(5000), SiluMulSpec(8)):
        request = Request(spec)
        support = session.supports(request)
        assert not support
        with pytest.raises(Unsupported) as caught:
            session.plan(request)
        assert caught.value.reasons == support.reasons
        assert caught.value.reasons


def test_support_names_the_provider_and_the_plan_carries_it(session):
    request = Request(AddSpec(8))
    assert session.supports(request).provider == session.plan(request).provider == "numpy"


def test_a_pin_to_an_absent_provider_is_unsupported_and_says_what_there_is(backend):
    session = backend.open(backend.devices()[0], SessionOptions(pins={"add": "fancy"}))
    with pytest.raises(Unsupported) as caught:
        session.plan(Request(AddSpec(8)))
    assert (caught.value.reasons[0].got, caught.value.reasons[0].want) == ("fancy", ("numpy",))


@pytest.mark.parametrize(
    ("a", "argument"),
    [
        (np.zeros((3, 7), np.float32), "a"),
        (np.zeros((3, 8), np.float16), "a"),
        (np.zeros(8, np.float32), "a"),
        (np.zeros((3, 16), np.float32)[:, ::2], "a"),
        ([[0.0] * 8] * 3, "array"),
        (np.zeros((2, 8), np.float32), "b"),
    ],
)
def test_wrong_arrays_are_refused_by_name(plan, a, argument):
    with pytest.raises(ContractError) as caught:
        plan(AddSpec(8)).run(a, np.zeros((3, 8), np.float32))
    assert caught.value.argument == argument


def test_a_free_token_stride_is_legal(plan):
    wide = np.arange(48, dtype=np.float32).reshape(3, 16)
    got = plan(AddSpec(8)).run(wide[:, 4:12], np.zeros((3, 8), np.float32))
    np.testing.assert_array_equal(got, wide[:, 4:12])


def test_out_is_checked_and_returned(plan):
    a, out = np.ones((3, 8), np.float32), np.empty((3, 8), np.float32)
    assert plan(AddSpec(8)).run(a, a, out=out) is out
    with pytest.raises(ContractError, match="out"):
        plan(AddSpec(8)).run(a, a, out=np.empty((3, 9), np.float32))


def test_what_a_kernel_raises_becomes_a_backend_error_with_its_cause(plan):
    bad = np.full((1, 8), np.inf, np.float32)
    with pytest.raises(BackendError) as caught:
        plan(AddSpec(8)).run(bad, bad)
    assert caught.value.operator == "add"
    assert isinstance(caught.value.cause, FloatingPointError)
    assert "numpy:0/numpy" in str(caught.value)


def test_the_observer_sees_every_kernel_and_only_kernels(plan, session):
    seen = []

    @contextlib.contextmanager
    def observer(running):
        seen.append((running.request.op, running.provider))
        yield

    session.observer = observer
    a = np.ones((1, 8), np.float32)
    plan(AddSpec(8)).run(a, a)
    with pytest.raises(ContractError):
        plan(AddSpec(8)).run(a, np.ones((2, 8), np.float32))
    assert seen == [("add", "numpy")]


def test_running_without_the_batch_it_needs_is_refused(plan, session):
    with pytest.raises(ContractError, match="update"):
        plan(CacheReadSpec(), cache=CACHE).run(session.allocate_cache(CACHE))


def test_a_batch_of_the_wrong_kind_is_refused(plan):
    with pytest.raises(ContractError, match="SlotBatch"):
        plan(CacheReadSpec(), cache=CACHE).update([1, 2])
    with pytest.raises(ContractError, match="takes no batch"):
        plan(AddSpec(8)).update(SlotBatch(np.array([0])))


@pytest.mark.parametrize(
    ("slots", "says"),
    [
        ([0, 12], "12"),
        ([-2], "-2"),
        ([3, 5, 3], "slot 3 twice"),
        ([0.5], "integers"),
        ([[1]], "shape"),
        (range(7), "7"),
    ],
)
def test_a_refused_batch_leaves_the_plan_as_it_was(plan, slots, says):
    write = plan(CacheWriteSpec(), SlotBatch(np.array([1, -1, -1])), cache=CACHE, bounds=Bounds(max_tokens=6))
    before = write.batch
    with pytest.raises(ContractError, match=says):
        write.update(SlotBatch(np.array(slots)))
    assert write.batch is before


def test_a_cache_of_another_spec_is_refused_not_reinterpreted(plan, session):
    """num_heads read as block_size after a layout sniff: impossible when caches carry their spec."""
    swapped = CacheSpec(3, 2, 4, 5, 7, F32, F32)
    write = plan(CacheWriteSpec(), SlotBatch(np.array([0])), cache=CACHE)
    with pytest.raises(ContractError, match="cache"):
        write.run(session.allocate_cache(swapped), np.zeros((1, 2, 5), np.float32), np.zeros((1, 2, 7), np.float32))


def test_an_out_of_place_session_returns_the_new_cache(plan, session):
    cache = session.allocate_cache(CACHE)
    k = np.arange(20, dtype=np.float32).reshape(2, 2, 5)
    v = np.arange(28, dtype=np.float32).reshape(2, 2, 7)
    written = plan(CacheWriteSpec(), SlotBatch(np.array([7, -1])), cache=CACHE).run(cache, k, v)
    got_k, got_v = plan(CacheReadSpec(), SlotBatch(np.array([7])), cache=CACHE).run(written)
    np.testing.assert_array_equal(got_k, k[:1])
    np.testing.assert_array_equal(got_v, v[:1])
    assert np.isnan(cache.planes["k"]).all()


def test_a_cache_format_that_is_not_held_is_unsupported(session):
    with pytest.raises(Unsupported):
        session.allocate_cache(CacheSpec(3, 4, 2, 5, 7, KVFormat("i8", "token_head"), F32))


def test_a_library_without_the_operator_adds_no_reason_where_another_says_what_is_in_the_way(backend):
    class Other(type(backend.providers()[0])):
        name = "other"

        def pick(self, device, request):
            return (Reason("op", "op", request.op, ["matmul"]),)

    both = type("Both", (type(backend),), {"providers": lambda self: [Other(), *backend.providers()]})()
    support = both.supports(backend.devices()[0], Request(AddSpec(5000)))
    assert [reason.field for reason in support.reasons] == ["width"]
    assert [provider for provider, _ in support.passed_over] == ["other", "numpy"]
    assert [reason.field for reason in both.supports(backend.devices()[0], Request(SiluMulSpec(8))).reasons] == [
        "op"
    ] * 2


def _made(session):
    """Calls of what makes something, by name."""
    request = Request(AddSpec(8))
    return {
        "plan": lambda: session.plan(request),
        "prepare_weight": lambda: session.prepare_weight(request, {}),
        "capture": lambda: session.capture(),
        "allocate_cache": lambda: session.allocate_cache(CACHE),
        "empty": lambda: session.empty((1,), "f32"),
        "upload": lambda: session.upload(np.zeros(1, np.float32)),
        "write": lambda: session.write(np.zeros(1, np.float32), np.zeros(1, np.float32)),
    }


def test_a_closed_session_makes_nothing_and_its_plans_do_nothing(backend):
    session, a = backend.open(backend.devices()[0], SessionOptions()), np.ones((1, 8), np.float32)
    add, read = session.plan(Request(AddSpec(8))), session.plan(Request(CacheReadSpec(), CACHE))
    cache, batch = session.allocate_cache(CACHE), SlotBatch(np.array([1]))
    read.update(batch)
    session.close()
    calls = {
        **_made(session),
        "run": lambda: add.run(a, a),
        "run with a batch": lambda: read.run(cache),
        "update": lambda: read.update(batch),
    }
    for call in calls.values():
        with pytest.raises(ContractError, match="session: wanted numpy:0 open, got a closed session"):
            call()
    assert read.batch is batch
    np.testing.assert_array_equal(session.download(a), a)


def test_a_session_gives_back_what_it_holds_once(backend):
    class Holding(type(backend.open(backend.devices()[0], SessionOptions()))):
        def _close(self):
            closed.append(self)

    closed = []
    with Holding(backend, backend.devices()[0], SessionOptions()) as session:
        assert not session.closed
        session.close()
        assert session.closed
    session.close()
    assert closed == [session]
