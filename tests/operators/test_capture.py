"""A step recorded once and replayed: what a replay runs with, where it writes, and what can't be captured."""

from __future__ import annotations

import contextlib
import gc

import numpy as np
import pytest

from opsocket.operators import (
    AddPlan,
    AddSpec,
    ArgmaxSpec,
    AttentionBatch,
    AttentionPlan,
    AttentionSpec,
    BackendError,
    CacheSpec,
    CacheWritePlan,
    CacheWriteSpec,
    CommandList,
    ContractError,
    Exchange,
    Graph,
    KVFormat,
    Pick,
    Ragged,
    Request,
    RMSNormPlan,
    RMSNormSpec,
    SessionOptions,
    SlotBatch,
    TakeRowsPlan,
    TakeRowsSpec,
    Unsupported,
)

ADD = Request(AddSpec(3))
F32 = KVFormat("f32")
CACHE = CacheSpec(4, 4, 1, 3, 3, F32, F32)


class Add(AddPlan):
    capture_level = "any"

    def _run(self, a, b, out):
        if np.isinf(a).any():
            raise FloatingPointError("this kernel does not like infinities")
        return np.add(a, b, out=out)


class Norm(RMSNormPlan):
    """Not a norm: what matters is a second result, which goes nowhere that `run` was told of."""

    capture_level = "any"

    def _run(self, x, weight, residual, out, residual_out):
        out[...] = x * weight
        return out, x + residual


class Attention(AttentionPlan):
    """Not attention: each row of out names the kv_len of its request and the first key of its blocks."""

    def _update(self, batch):
        lens = np.repeat(np.array(batch.kv_lens), np.diff(batch.q_indptr))
        blocks = np.repeat(np.array(batch.block_table)[:, 0], np.diff(batch.q_indptr)) if self.request.cache else lens
        self._rows = np.stack([lens, blocks, lens], axis=1).astype(np.float32)

    def _run(self, q, kv, sinks, alibi, tree_mask, out, lse_out):
        out[: len(self._rows), 0] = self._rows + q[: len(self._rows), 0]
        if lse_out is not None:
            lse_out[: len(self._rows)] = 0
        return out, lse_out


class DecodeAttention(Attention):
    capture_level = "decode"


class UniformAttention(Attention):
    capture_level = "uniform"


class Write(CacheWritePlan):
    def _run(self, cache, k, v):
        slots = np.asarray(self.batch.slots)
        for name, values in (("k", k), ("v", v)):
            cache.planes[name].reshape(-1, 1, 3)[slots[slots >= 0]] = values[: len(slots)][slots >= 0]
        return cache


class TakeRows(TakeRowsPlan):
    def _run(self, x, rows, out):
        raise AssertionError("a kernel that can't be captured ran under capture")


class NumpyList(CommandList):
    def _copy(self, target, source):
        target[...] = source


class Native(Graph):
    """Captures what kernels say of themselves, and counts its replays."""

    events: tuple[str, ...] = ()

    def _begin(self):
        self.events += ("begin",)

    def _end(self):
        self.events += ("end",)

    def _replay(self):
        self.events += ("replay",)


@pytest.fixture
def open_with(backend):
    """open_with(graph_type, attention kernel) -> an in-place NumPy session that captures so."""

    numpy_session = type(backend.open(backend.devices()[0], SessionOptions()))

    def make(graph_type, attention=Attention, in_place=True):
        kernels = {
            AddSpec: Add,
            RMSNormSpec: Norm,
            AttentionSpec: attention,
            CacheWriteSpec: Write,
            TakeRowsSpec: TakeRows,
        }

        class Provider(type(backend.providers()[0])):
            def pick(self, device, request):
                kernel = kernels.get(type(request.spec))
                return Pick(kernel) if kernel else super().pick(device, request)

        place = type("Session", (numpy_session,), {"in_place": in_place})
        inner = type(
            "Backend",
            (type(backend),),
            {
                "graph_type": graph_type,
                "providers": lambda self: [Provider()],
                "open": lambda self, device, options: place(self, device, options),
            },
        )()
        return inner.open(inner.devices()[0], SessionOptions())

    return make


@pytest.fixture
def session(open_with):
    return open_with(NumpyList)


def _rows(*values):
    return np.array(values, np.float32)[:, None].repeat(3, 1)


def _decode(kv_lens, first_blocks=None):
    size = len(kv_lens)
    table = np.zeros((size, 4), np.int32) if first_blocks is None else np.array(first_blocks)[:, None].repeat(4, 1)
    return AttentionBatch(np.arange(size + 1), np.array(kv_lens), table)


def _attention(session, batch, **knobs):
    return session.plan(Request(AttentionSpec(1, 1, 3, 3, 1.0, **knobs), CACHE), batch)


def _refused(argument):
    @contextlib.contextmanager
    def check():
        with pytest.raises(ContractError) as caught:
            yield
        assert caught.value.argument == argument

    return check()


def test_a_replay_runs_the_same_plans_on_what_the_same_arrays_hold_now(session):
    add, a, b = session.plan(ADD), _rows(1, 2), _rows(10, 20)
    middle, out = np.zeros_like(a), np.zeros_like(a)
    with session.capture() as graph:
        assert add.run(a, b, out=middle) is middle
        add.run(middle, b, out=out)
    np.testing.assert_array_equal(out, a + 2 * b)
    for value in (5, 7):
        session.write(a, _rows(value, value))
        graph.replay()
        np.testing.assert_array_equal(out, _rows(value, value) + 2 * b)


def test_a_replay_takes_the_batch_of_the_last_update(session):
    plan, q, out = _attention(session, _decode([5, 9], [1, 2])), np.zeros((2, 1, 3), np.float32), _out(2)
    cache = session.allocate_cache(CACHE)
    with session.capture() as graph:
        plan.run(q, cache, out=out)
    np.testing.assert_array_equal(out[:, 0], [[5, 1, 5], [9, 2, 9]])
    plan.update(_decode([6, 10], [3, 0]))
    graph.replay()
    np.testing.assert_array_equal(out[:, 0], [[6, 3, 6], [10, 0, 10]])
    plan.update(_decode([7]))
    graph.replay()
    np.testing.assert_array_equal(out[:, 0], [[7, 0, 7], [10, 0, 10]])


def _out(rows):
    return np.zeros((rows, 1, 3), np.float32)


def test_a_cache_write_is_replayed_into_its_cache(session):
    cache = session.allocate_cache(CACHE)
    plan = session.plan(Request(CacheWriteSpec(), CACHE), SlotBatch(np.array([3, -1])))
    k = _rows(1, 2)[:, None]
    with session.capture() as graph:
        plan.run(cache, k, k)
    plan.update(SlotBatch(np.array([-1, 8])))
    graph.replay()
    held = cache.planes["k"].reshape(-1, 3)[:, 0]
    assert (held[3], held[8]) == (1, 2)
    assert np.isnan(np.delete(held, [3, 8])).all()
    with _refused("k"):
        plan.update(SlotBatch(np.array([1, 2, 3])))


def test_a_result_without_a_parameter_stays_where_the_captured_run_put_it(session):
    norm = session.plan(Request(RMSNormSpec(3, 0.0, residual=True)))
    x, weight, residual, y = _rows(1, 2), np.ones(3, np.float32), _rows(10, 20), _rows(0, 0)
    with session.capture() as graph:
        _, added = norm.run(x, weight, residual, out=y)
    np.testing.assert_array_equal(added, _rows(11, 22))
    session.write(x, _rows(3, 4))
    graph.replay()
    np.testing.assert_array_equal(added, _rows(13, 24))


@pytest.mark.parametrize(
    ("outs", "argument"),
    [({}, "out"), ({"lse_out": np.zeros((1, 1), np.float32)}, "out"), ({"out": _out(1)}, "lse_out")],
)
def test_an_output_without_a_stable_address_is_refused(session, outs, argument):
    plan, cache = _attention(session, _decode([3]), want_lse=True), session.allocate_cache(CACHE)
    with session.capture(), _refused(argument):
        plan.run(_out(1), cache, **outs)


def test_no_update_under_capture(session):
    """Two runs of one plan with two batches would both be replayed with the last."""
    plan, cache = _attention(session, _decode([3])), session.allocate_cache(CACHE)
    before = plan.batch
    with session.capture():
        plan.run(_out(1), cache, out=_out(1))
        with _refused("batch"):
            plan.update(_decode([4]))
    assert plan.batch is before


def test_a_batch_that_the_captured_arrays_have_no_room_for_is_refused(session):
    plan, cache = _attention(session, _decode([3, 4])), session.allocate_cache(CACHE)
    with session.capture() as graph:
        plan.run(_out(2), cache, out=_out(2))
    before = plan.batch
    with _refused("q"):
        plan.update(AttentionBatch(np.array([0, 3]), np.array([3]), np.zeros((1, 1), int)))
    with _refused("q_indptr"):
        plan.update(AttentionBatch(np.array([0, 1, 2, 2]), np.array([3, 3, 3]), np.zeros((3, 1), int)))
    assert plan.batch is before
    graph.replay()
    del graph
    gc.collect()
    plan.update(_decode([3, 3, 3]))


def test_contiguous_keys_too_are_only_as_many_as_were_captured(session):
    batch = AttentionBatch(np.array([0, 1]), np.array([2]), kv_indptr=np.array([0, 2]))
    plan = session.plan(Request(AttentionSpec(1, 1, 3, 3, 1.0)), batch)
    with session.capture() as graph:
        plan.run(_out(1), Ragged(_out(2), _out(2)), out=_out(1))
    with _refused("kv.k"):
        plan.update(AttentionBatch(np.array([0, 1]), np.array([3]), kv_indptr=np.array([0, 3])))
    graph.replay()


def test_the_captured_batch_is_remembered_as_it_was(session):
    indptr = np.array([0, 1, 2])
    plan = _attention(session, AttentionBatch(indptr, np.array([3, 4]), np.zeros((2, 1), int)))
    with session.capture() as graph:
        plan.run(_out(4), session.allocate_cache(CACHE), out=_out(4))
    indptr[:] = 0
    plan.update(_decode([3, 4]))
    graph.replay()


def _three(q_lens):
    return AttentionBatch(np.cumsum([0, *q_lens]), np.full(3, 5), np.zeros((3, 2), int))


@pytest.mark.parametrize(
    ("kernel", "captured", "refused", "taken"),
    [
        (DecodeAttention, [1, 0, 1], [1, 2, 0], [0, 1, 0]),
        (UniformAttention, [2, 2, 0], [1, 2, 0], [0, 2, 0]),
        (UniformAttention, [2, 2, 0], [1, 1, 1], [2, 0, 2]),
    ],
)
def test_a_level_holds_for_every_batch_after_the_captured_one(open_with, kernel, captured, refused, taken):
    session = open_with(Native, kernel)
    plan, cache = _attention(session, _three(captured)), session.allocate_cache(CACHE)
    with session.capture() as graph:
        plan.run(_out(9), cache, out=_out(9))
    with _refused("q_indptr"):
        plan.update(_three(refused))
    plan.update(_three(taken))
    graph.replay()
    assert graph.events == ("begin", "end", "replay")


@pytest.mark.parametrize("kernel", [DecodeAttention, UniformAttention])
def test_a_level_holds_for_the_captured_batch(open_with, kernel):
    session = open_with(Native, kernel)
    plan = _attention(session, _three([1, 2, 0]))
    with session.capture(), _refused("q_indptr"):
        plan.run(_out(9), session.allocate_cache(CACHE), out=_out(9))


def test_what_can_not_be_captured_raises_as_supports_says_and_does_not_run(open_with):
    session = open_with(Native)
    request = Request(TakeRowsSpec(3))
    assert session.supports(request).capture == "never"
    assert session.supports(ADD).capture == "any"
    plan = session.plan(request)
    with session.capture() as graph:
        with pytest.raises(Unsupported) as caught:
            plan.run(_rows(1), np.array([0]), out=_rows(0))
        assert [r.code for r in caught.value.reasons] == ["capture"]
        assert graph.calls == []


def test_a_command_list_takes_every_kernel(session):
    assert session.supports(Request(TakeRowsSpec(3))).capture == "any"
    assert session.supports(Request(ArgmaxSpec(3))).capture == "never"  # it is not supported at all


@pytest.mark.parametrize(("graph_type", "in_place"), [(None, True), (NumpyList, False)])
def test_a_sessionthat_can_not_capture_says_so(open_with, graph_type, in_place):
    session = open_with(graph_type, in_place=in_place)
    with pytest.raises(Unsupported) as caught:
        session.capture()
    assert [r.code for r in caught.value.reasons] == ["capture"]
    if graph_type is None:
        assert session.supports(ADD).capture == "never"


def test_an_error_in_the_block_leaves_no_graph_and_no_capture(session):
    add, bad = session.plan(ADD), np.full((1, 3), np.inf, np.float32)
    graph = session.capture()
    with pytest.raises(BackendError), graph:
        add.run(bad, bad, out=_rows(0))
    with _refused("graph"):
        graph.replay()
    with _refused("capture"), graph:
        pass
    assert session.capturing is None
    with session.capture() as again:
        add.run(_rows(1), _rows(1), out=_rows(0))
    again.replay()


def test_what_a_kernel_raises_in_a_replay_names_the_kernel(session):
    add, a, out = session.plan(ADD), _rows(1), _rows(0)
    with session.capture() as graph:
        add.run(a, a, out=out)
    a[:] = np.inf
    with pytest.raises(BackendError) as caught:
        graph.replay()
    assert caught.value.operator == "add"


def test_one_capture_at_a_time_and_no_replay_inside(session):
    with session.capture() as first:
        pass
    with session.capture():
        with _refused("capture"), session.capture():
            pass
        with _refused("graph"):
            first.replay()
    with _refused("graph"):
        session.capture().replay()


def test_invalid_arguments_are_refused_under_capture_and_nothing_is_recorded(session):
    add = session.plan(ADD)
    with session.capture() as graph:
        with _refused("b"):
            add.run(_rows(1), _rows(1, 2), out=_rows(0))
        assert graph.calls == []


def test_the_observer_sees_what_a_command_list_replays(session):
    seen = []

    @contextlib.contextmanager
    def observer(plan):
        seen.append(plan.request.op)
        yield

    add = session.plan(ADD)
    with session.capture() as graph:
        add.run(_rows(1), _rows(1), out=_rows(0))
    session.observer = observer
    graph.replay()
    assert seen == ["add"]


def _adding(session, x, out):
    """A graph of out = 2 x, and its plan."""
    plan = session.plan(ADD)
    with session.capture() as graph:
        plan.run(x, x, out=out)
    return graph, plan


def test_runs_are_repeated_with_other_arrays_without_running_first(session):
    x, out, y, other = _rows(1), _rows(0), _rows(5), _rows(0)
    graph, _ = _adding(session, x, out)
    chain = graph.repeated([Exchange(), Exchange([(x, out), (out, other)]), Exchange([(x, y)])])
    out[...] = 0
    assert not other.any()
    session.write(x, _rows(3))
    chain.replay()
    np.testing.assert_array_equal(other, _rows(12))  # twice 2 x
    np.testing.assert_array_equal(out, _rows(10))  # and then 2 y
    session.write(y, _rows(7))
    chain.replay()
    np.testing.assert_array_equal(out, _rows(14))
    graph.replay()
    np.testing.assert_array_equal(out, _rows(6))


def test_repeated_runs_take_the_batches_of_the_plans_that_they_got(session):
    first, second = _attention(session, _decode([5], [1])), _attention(session, _decode([7], [2]))
    q, out, other, cache = np.zeros((1, 1, 3), np.float32), _out(1), _out(1), session.allocate_cache(CACHE)
    with session.capture() as graph:
        first.run(q, cache, out=out)
    chain = graph.repeated([Exchange(), Exchange([(out, other)], {first: second})])
    chain.replay()
    np.testing.assert_array_equal([out[0, 0], other[0, 0]], [[5, 1, 5], [7, 2, 7]])
    first.update(_decode([6], [3]))
    second.update(_decode([9], [0]))
    chain.replay()
    np.testing.assert_array_equal([out[0, 0], other[0, 0]], [[6, 3, 6], [9, 0, 9]])
    with _refused("q"):
        second.update(_decode([1, 1]))
    with _refused("q"):
        graph.repeated([Exchange((), {first: _attention(session, _decode([1, 1]))})])
    two = session.empty((2, 1, 3), "f32")
    with session.capture() as wider:
        first.run(two, cache, out=session.empty((2, 1, 3), "f32"))
    with _refused("q_indptr"):
        wider.repeated([Exchange((), {first: _attention(session, _decode([1, 1]))})])
    del chain
    gc.collect()
    second.update(_decode([1, 1]))


def test_what_is_exchanged_has_to_be_alike_and_there(session, open_with):
    x, out = _rows(1), _rows(0)
    graph, plan = _adding(session, x, out)
    for arrays in ([(x, _rows(1, 2))], [(x, _rows(1).astype(np.float64))], [(x, np.zeros((1, 6), np.float32)[:, ::2])]):
        with _refused("arrays"):
            graph.repeated([Exchange(arrays)])
    with _refused("arrays, plans"):
        graph.repeated([Exchange([(_rows(1), x)])])
    with _refused("arrays, plans"):
        graph.repeated([Exchange((), {session.plan(ADD): plan})])
    for other in (session.plan(Request(AddSpec(4))), open_with(NumpyList).plan(ADD)):
        with _refused("plans"):
            graph.repeated([Exchange((), {plan: other})])
    attention, cache = _attention(session, _decode([5])), session.allocate_cache(CACHE)
    with session.capture() as captured:
        attention.run(np.zeros((1, 1, 3), np.float32), cache, out=_out(1))
    with _refused("plans"):
        captured.repeated([Exchange((), {attention: session.plan(attention.request)})])
    with contextlib.suppress(ZeroDivisionError), session.capture() as broken:
        plan.run(x, x, out=out)
        raise ZeroDivisionError
    with _refused("graph"):
        broken.repeated([Exchange()])


def test_a_kind_of_graph_that_can_not_repeat_says_so(open_with):
    native = open_with(Native)
    graph, _ = _adding(native, _rows(1), _rows(0))
    assert not graph.repeats
    with _refused("graph"):
        graph.repeated([Exchange()])


class FirstRows(AddPlan):
    """Heeds how many rows of its arrays it is to run on."""

    any_rows = True

    def _run(self, a, b, out):
        count = (self.session.rows or {}).get(len(a), len(a))
        np.add(a[:count], b[:count], out=out[:count])
        return out


class AnyRows(NumpyList):
    any_rows = True


def _first_rows(open_with):
    session = open_with(AnyRows)
    return session, FirstRows(session, ADD, "test")


def test_a_graph_runs_on_the_first_rows_of_its_arrays_as_many_as_it_is_told(open_with):
    session, plan = _first_rows(open_with)
    x, out, y, other = _rows(1, 2, 3, 4), _rows(0, 0, 0, 0), _rows(7, 8), _rows(0, 0)
    with session.capture({4: 2, 2: 1}) as graph:
        plan.run(x, x, out=out)
        plan.run(y, y, out=other)
    assert session.rows is None
    np.testing.assert_array_equal([*out, *other], _rows(2, 4, 0, 0, 14, 0))
    out[...], other[...] = 0, 0
    graph.replay({4: 3, 2: 0})
    np.testing.assert_array_equal([*out, *other], _rows(2, 4, 6, 0, 0, 0))
    graph.replay()
    np.testing.assert_array_equal([*out, *other], _rows(2, 4, 6, 8, 14, 16))
    out[...] = 0
    graph.repeated([Exchange()]).replay({4: 1, 2: 2})
    np.testing.assert_array_equal([*out, *other], _rows(2, 0, 0, 0, 14, 16))
    assert session.rows is None


def test_numbers_of_rows_that_can_not_be_are_refused(open_with):
    session, plan = _first_rows(open_with)
    x, out = _rows(1, 2), _rows(0, 0)
    with _refused("rows"):
        session.capture({2: 3})
    with session.capture({2: 1}) as graph:
        plan.run(x, x, out=out)
    for rows in ({2: 3}, {2: -1}, {}, {3: 1}, {2: 1, 3: 1}):
        with _refused("rows"):
            graph.replay(rows)
    with pytest.raises(Unsupported, match="any number"), session.capture({2: 1}):
        session.plan(ADD).run(x, x, out=out)
    assert session.rows is None
    with pytest.raises(Unsupported, match="any_rows"):
        open_with(NumpyList).capture({2: 1})
