"""CANN's graphs: what they replay, what is run again and why, and what the emulated NPU refuses as a chip would."""

from dataclasses import replace

import numpy as np
import pytest

from opsocket.operators import (
    AttentionBatch,
    AttentionSpec,
    BackendError,
    Bounds,
    CacheSpec,
    CacheWriteSpec,
    ContractError,
    KVFormat,
    Numerics,
    Request,
    RMSNormSpec,
    SlotBatch,
)

BF16, I8 = KVFormat("bf16"), KVFormat("i8", "token_head")
CACHE = CacheSpec(9, 128, 2, 64, 64, BF16, BF16)
LATENT = replace(CACHE, num_kv_heads=1, head_dim_k=576, head_dim_v=512, v=None, kind="latent")
KINDS = dict.fromkeys(("q_dtype", "kv_dtype", "out_dtype"), "bf16")
FAST = Numerics("bf16", "approx", accumulate="f32_truncating", dequantized="bf16", sinks="bf16")
BOUNDS = Bounds(max_tokens=8, max_batch=4, max_q_len=4, max_kv_len=512)
PLAIN = AttentionSpec(14, 2, 64, 64, 0.125, numerics=FAST, **KINDS)


def batch(q_lens, kv_lens, first=0):
    ends = np.concatenate([[0], np.cumsum(q_lens)]).astype(np.int32)
    table = (first + np.arange(len(kv_lens) * 4, dtype=np.int32).reshape(-1, 4)) % CACHE.num_blocks
    return AttentionBatch(ends, np.array(kv_lens, np.int32), table)


class Step:
    """A cache_write and attention over it, captured with a batch of three sequences; and the same without a graph."""

    def __init__(self, session, spec=PLAIN, cache=CACHE, q_len=1):
        self.session, self.rng = session, np.random.default_rng(0)
        self.rows, self.spec = 3 * q_len, spec
        write = CacheWriteSpec("bf16")
        self.q = session.empty((self.rows, spec.num_q_heads, spec.head_dim_qk), "bf16")
        self.k = session.empty((self.rows, cache.num_kv_heads, cache.head_dim_k), "bf16")
        self.v = None if cache.kind == "latent" else self.k
        self.sinks = session.upload(np.ones(spec.num_q_heads, np.float32)) if spec.sinks else None
        self.sides = []
        for _ in range(2):
            plans = [session.plan(Request(each, cache, bounds=BOUNDS)) for each in (write, spec)]
            held = session.allocate_cache(cache)
            every = session.plan(Request(write, cache), SlotBatch(np.arange(cache.num_slots)))
            tokens = np.random.default_rng(1).standard_normal((cache.num_slots, cache.num_kv_heads, cache.head_dim_k))
            k = session.upload(tokens.astype(np.float32), "bf16")
            every.run(held, k, None if self.v is None else k)
            out = session.empty((self.rows, spec.num_q_heads, spec.head_dim_vo), "bf16")
            lse = session.empty((self.rows, spec.num_q_heads), "f32") if spec.want_lse else None
            self.sides.append((plans, held, out, lse))
        self.eager, self.captured = self.sides
        self.graph = None

    def update(self, step, slots):
        for array in (self.q, self.k):
            shape = self.session.describe(array).shape
            self.session.write(array, self.rng.standard_normal(shape).astype(np.float32))
        for (write, attend), _, out, _ in self.sides:
            write.update(SlotBatch(np.asarray(slots)))
            attend.update(step)
            self.session.write(out, np.full(self.session.describe(out).shape, np.nan, np.float32))

    def run(self, side):
        (write, attend), held, out, lse = side
        write.run(held, self.k, self.v)
        more = {"lse_out": lse, "sinks": self.sinks}
        attend.run(self.q, held, out=out, **{name: array for name, array in more.items() if array is not None})

    def capture(self):
        with self.session.capture() as self.graph:
            self.run(self.captured)
        self.run(self.eager)

    def results(self):
        self.run(self.eager)
        return [self.session.download(out) for _, _, out, _ in self.sides]

    def same(self):
        ours, theirs = self.results()
        np.testing.assert_array_equal(ours, theirs)
        for name, plane in self.eager[1].planes.items():
            mine = self.captured[1].planes[name]
            np.testing.assert_array_equal(*map(self.session.download, (mine, plane)))


STEPS = (
    ([5, 130, 7], [0, 200, 300]),
    ([6, 131, 8], [1, 201, 301]),
    ([400, 1, 512], [40, 900, 1100]),
)
OVER_LATENT = replace(PLAIN, num_q_heads=16, num_kv_heads=1, head_dim_qk=576, head_dim_vo=512)
KINDS_OF_ATTENTION = {
    "first version": (PLAIN, CACHE, 1),
    "with LSE": (replace(PLAIN, want_lse=True), CACHE, 1),
    "windows, lone queries given twice": (replace(PLAIN, window_left=64), CACHE, 1),
    "several tokens verified": (PLAIN, CACHE, 2),
    "int8 pages": (PLAIN, replace(CACHE, k=I8, v=I8), 1),
    "second version: sinks": (replace(PLAIN, sinks=True), CACHE, 1),
    "second version: latent pages": (OVER_LATENT, LATENT, 1),
}


@pytest.mark.parametrize("kind", KINDS_OF_ATTENTION)
def test_every_step_is_replayed_by_cann_and_gives_the_eager_bits(session, kind):
    spec, cache, q_len = KINDS_OF_ATTENTION[kind]
    step = Step(session, spec, cache, q_len)
    assert step.captured[0][1].provider == "torch_npu"
    for kv_lens, slots in STEPS:
        if "windows" in kind:
            kv_lens = [100 + length // 2 for length in kv_lens]
        kv_lens = np.maximum(kv_lens, q_len)
        slots = (np.array(slots)[:, None] + np.arange(q_len)).reshape(-1)
        step.update(batch([q_len] * 3, kv_lens), slots)
        if step.graph is None:
            step.capture()
        else:
            step.graph.replay()
            assert step.graph.made_again == ()
        step.same()


def test_a_batch_of_another_form_is_run_again_and_the_reason_given(session):
    step = Step(session)
    step.update(batch([1, 1, 1], [5, 130, 7]), [0, 200, 300])
    step.capture()
    for q_lens, kv_lens, slots in (([1, 0, 1], [5, 0, 9], [1, 2]), ([3], [40], [3, 4, 5])):
        step.update(batch(q_lens, kv_lens), slots)
        step.graph.replay()
        assert [reason.code for reason in step.graph.made_again] == ["batch"] * 2
        step.same()
    step.update(batch([1, 1, 1], [6, 7, 8]), [7, 8, 9])
    step.graph.replay()
    assert step.graph.made_again == ()
    step.same()


def test_runs_that_launch_by_their_batch_stand_between_graphs(session):
    """Provider torch's attention loops over sequences: what comes before and after it is still replayed by CANN."""
    norm = session.plan(Request(RMSNormSpec(64, 1e-5, "bf16")))
    exact = replace(PLAIN, numerics=Numerics(), num_q_heads=2)
    plan = session.plan(Request(exact, CACHE, bounds=BOUNDS), batch([1], [3]))
    assert plan.provider == "torch"
    cache, x = session.allocate_cache(CACHE), session.upload(np.ones((2, 64), np.float32), "bf16")
    for plane in cache.planes.values():
        plane.fill_(1)
    weight = session.upload(np.ones(64, np.float32))
    h, out, y = (session.empty((2, 64), "bf16") for _ in range(3))
    with session.capture() as graph:
        norm.run(x, weight, out=h)
        plan.run(session.view(h, (1, 2, 64)), cache, out=session.view(out, (1, 2, 64)))
        norm.run(out, weight, out=y)
    want = session.download(y)
    for array in (h, out, y):
        session.write(array, np.zeros((2, 64), np.float32))
    graph.replay()
    np.testing.assert_array_equal(session.download(y), want)
    assert [reason.field for reason in graph.made_again] == ["torch: attention"]


def test_an_observer_sees_every_run_of_a_replay(session):
    import contextlib

    norm = session.plan(Request(RMSNormSpec(64, 1e-5, "bf16")))
    x, weight = session.upload(np.ones((2, 64), np.float32), "bf16"), session.upload(np.ones(64, np.float32))
    with session.capture() as graph:
        norm.run(x, weight, out=session.empty((2, 64), "bf16"))
    seen = []
    session.observer = lambda plan: contextlib.nullcontext(seen.append(plan))
    try:
        graph.replay()
    finally:
        session.observer = None
    assert seen == [norm]
    assert [reason.code for reason in graph.made_again] == ["observed"]


def captured(session):
    step = Step(session)
    step.update(batch([1, 1, 1], STEPS[0][0]), STEPS[0][1])
    step.capture()
    return step


def next_step(step):
    kv_lens, slots = STEPS[2]
    step.update(batch([1, 1, 1], kv_lens), slots)


def test_a_forgotten_task_update_leaves_the_lengths_as_they_were(session, monkeypatch):
    """The control of the tests above: events alone, and the lists that the graph was captured with."""
    from opsocket_ascend.graph_tasks import Tasks

    step = captured(session)
    next_step(step)

    def record(tasks):
        for task in tasks._tasks:
            task.event.record(tasks._stream)

    monkeypatch.setattr(Tasks, "update", record)
    step.graph.replay()
    ours, theirs = step.results()
    assert not np.array_equal(ours, theirs)


def test_a_replay_that_nothing_was_updated_for_would_hang(session, monkeypatch):
    from opsocket_ascend.graph_tasks import Tasks

    step = captured(session)
    monkeypatch.setattr(Tasks, "update", lambda tasks: None)
    with pytest.raises(BackendError, match="nobody has recorded"):
        step.graph.replay()


def test_an_array_that_moved_is_noticed_and_would_have_been_stale(session, monkeypatch):
    from opsocket_ascend.recorded import RecordedRuns

    step = Step(session)
    unbounded = Request(PLAIN, CACHE)
    for plans, *_ in step.sides:
        plans[1] = session.plan(unbounded)
    step.update(batch([1, 1, 1], [5, 100, 7]), [0, 200, 300])
    step.capture()
    next_step(step)  # more blocks than the table had room for
    step.graph.replay()
    assert {reason.code for reason in step.graph.made_again} == {"batch"}
    step.same()
    monkeypatch.setattr(RecordedRuns, "misfit", lambda runs: None)
    step.update(batch([1, 1, 1], [5, 100, 7], first=2), [0, 200, 300])
    step.graph.replay()
    ours, theirs = step.results()
    assert not np.array_equal(ours, theirs)


def test_an_update_does_not_overtake_the_replay_before(session, monkeypatch):
    from opsocket_ascend.graph_tasks import Tasks

    step = captured(session)
    monkeypatch.setattr(Tasks, "replayed", lambda tasks: None)
    step.graph.replay()
    with pytest.raises(BackendError, match="may still"):
        step.graph.replay()


def capture(run):
    """One of CANN's graphs of what `run` does, without the backend."""
    import torch

    graph, stream = torch.npu.NPUGraph(), torch.npu.Stream()
    torch.npu.synchronize()
    with torch.npu.stream(stream):
        graph.capture_begin()
        try:
            run()
        finally:
            graph.capture_end()
    return graph


FORBIDDEN = {
    "a number read by the host": lambda x: x.sum().item(),
    "a copy to the host": lambda x: x.cpu(),
    "a copy from memory that is not pinned": lambda x: x.copy_(x.new_ones(x.shape, device="cpu")),
    "waiting for the device": lambda x: __import__("torch").npu.synchronize(),
    "waiting for the stream": lambda x: __import__("torch").npu.current_stream().synchronize(),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_a_capture_forbids(session, what):
    import torch

    x = torch.ones(4, device="npu")
    with pytest.raises(RuntimeError, match="capture is invalid") as caught:
        capture(lambda: FORBIDDEN[what](x))
    assert "1070" in str(caught.value.__context__)
    torch.npu.synchronize()
    capture(lambda: x.add_(1)).replay()
    assert x.cpu().tolist() == [2, 2, 2, 2]


def test_a_replay_works_on_what_memory_holds_then(session):
    import torch

    x, y = torch.ones(4, device="npu"), torch.zeros(4, device="npu")
    graph = capture(lambda: y.copy_(x * 2))
    assert y.cpu().tolist() == [0, 0, 0, 0]
    x.fill_(5)
    graph.replay()
    assert y.cpu().tolist() == [10, 10, 10, 10]


def test_a_chip_without_documented_task_updates_runs_everything_again(session, monkeypatch):
    from opsocket_ascend import graph as module
    from opsocket_ascend.socs import find_soc

    monkeypatch.setattr(module, "soc_of", lambda arch: find_soc("Ascend310P3"))
    step = captured(session)
    next_step(step)
    step.graph.replay()
    assert [reason.code for reason in step.graph.made_again] == ["chip", "chip"]
    step.same()


def test_without_waits_for_later_events_attention_alone_is_run_again(session, monkeypatch):
    from opsocket_ascend import graph_tasks

    monkeypatch.setattr(graph_tasks, "can_wait", lambda: False)
    step = captured(session)
    next_step(step)
    step.graph.replay()
    assert [reason.field for reason in step.graph.made_again] == ["aclrtValueWait"]
    step.same()


def test_a_workspace_is_for_the_most_keys_that_a_table_can_name(session, monkeypatch):
    """Of the lengths captured alone it would be too small for later ones. Other graphs' updates are none the worse."""
    import torch

    def small(*tensors, actual_seq_lengths_kv, **rest):
        return torch.empty(64 * sum(actual_seq_lengths_kv), dtype=torch.uint8, device="npu")

    with monkeypatch.context() as patch:
        patch.setattr(torch.ops.npu, "_npu_fused_infer_attention_score_get_max_workspace", small)
        step = captured(session)
    next_step(step)
    with pytest.raises(BackendError, match="a workspace of"):
        step.graph.replay()
    other = captured(session)
    next_step(other)
    other.graph.replay()
    other.same()


def test_what_fails_while_recording_says_so_and_leaves_no_graph(session, monkeypatch):
    import torch

    norm = session.plan(Request(RMSNormSpec(64, 1e-5, "bf16")))
    x, weight = session.upload(np.ones((2, 64), np.float32), "bf16"), session.upload(np.ones(64, np.float32))
    out = session.empty((2, 64), "bf16")
    graph = session.capture()
    with monkeypatch.context() as patch:
        patch.setattr(type(norm), "_run", lambda plan, *given: (torch.npu.synchronize(), given[-1])[1])
        with pytest.raises(BackendError, match="may not wait while a stream is captured"), graph:
            norm.run(x, weight, out=out)
    with pytest.raises(ContractError):
        graph.replay()
    with session.capture() as again:
        norm.run(x, weight, out=out)
    again.replay()
    assert again.made_again == ()


def test_memory_that_a_graph_needs_and_that_was_given_back_is_noticed(session):
    import torch

    held, y = [torch.ones(1 << 22, device="npu")], torch.zeros(4, device="npu")
    graph = capture(lambda: y.copy_(held[0][:4]))
    held.clear()
    torch.npu.empty_cache()
    with pytest.raises(RuntimeError, match="outside of its device allocation"):
        graph.replay()
