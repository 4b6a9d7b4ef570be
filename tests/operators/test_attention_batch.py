"""The batch of an attention step is checked on the host, whole, before anything is uploaded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsocket.operators import AttentionBatch, AttentionSpec, Bounds, CacheSpec, ContractError, KVFormat, Ragged

F32 = KVFormat("f32")
SPEC = AttentionSpec(4, 2, 8, 6, 0.3)
TREE = AttentionSpec(4, 2, 8, 6, 0.3, mask="tree")
TREE_WINDOW = AttentionSpec(4, 2, 8, 6, 0.3, mask="tree", window_left=3)
CACHE = CacheSpec(10, 4, 2, 8, 6, F32, F32)
GOOD = {"q_indptr": [0, 2, 3], "kv_lens": [5, 9], "block_table": [[3, 4, -1], [0, 9, 2]]}


def batch(**changes) -> AttentionBatch:
    values = {**GOOD, **changes}
    return AttentionBatch(**{k: np.array(v) if isinstance(v, list) else v for k, v in values.items()})


def test_a_good_batch_is_taken_and_table_entries_past_the_end_are_free(plan):
    plan(SPEC, batch(), cache=CACHE)
    plan(SPEC, batch(block_table=[[3, 4, 10**6], [0, 9, 2]]), cache=CACHE)
    plan(SPEC, batch(q_indptr=[0, 0, 3], kv_lens=[0, 2]), cache=CACHE)


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"q_indptr": [1, 2, 3]}, "q_indptr"),
        ({"q_indptr": [0, 3, 2]}, "q_indptr"),
        ({"q_indptr": [0.0, 2.0, 3.0]}, "q_indptr"),
        ({"kv_lens": [5]}, "kv_lens"),
        ({"kv_lens": [5, -1]}, "kv_lens"),
        ({"kv_lens": [5, 13]}, "block_table"),
        ({"block_table": None}, "block_table"),
        ({"block_table": [[3, 4], [0, 9]]}, "block_table"),
        ({"block_table": [[3, 10, -1], [0, 9, 2]]}, "block_table[0, 1]"),
        ({"block_table": [[3, 4, -1], [0, -1, 2]]}, "block_table[1, 1]"),
        ({"kv_indptr": [0, 5, 14]}, "kv_indptr"),
        ({"kv_start": [0]}, "kv_start"),
        ({"q_start": [0, 1, 2]}, "q_start"),
        ({"q_positions": [0, 1]}, "q_positions"),
        ({"mask_indptr": [0, 1, 2]}, "mask_indptr"),
    ],
)
def test_a_bad_batch_is_refused_by_name(plan, changes, argument):
    with pytest.raises(ContractError) as caught:
        plan(SPEC, batch(**changes), cache=CACHE)
    assert caught.value.argument == argument


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"q_indptr": [0, 2, 7]}, "q_indptr"),
        ({"q_indptr": [0, 0, 5]}, "q_indptr"),
        ({"q_indptr": [0, 1, 2, 3], "kv_lens": [1, 1, 1], "block_table": [[0], [1], [2]]}, "q_indptr"),
        ({"kv_lens": [5, 12]}, "kv_lens"),
    ],
)
def test_a_batch_beyond_the_planned_bounds_is_refused(plan, changes, argument):
    bounds = Bounds(max_tokens=6, max_batch=2, max_q_len=4, max_kv_len=11)
    plan(SPEC, batch(), cache=CACHE, bounds=bounds)
    with pytest.raises(ContractError) as caught:
        plan(SPEC, batch(**changes), cache=CACHE, bounds=bounds)
    assert caught.value.argument == argument


@pytest.mark.parametrize(
    ("spec", "changes", "argument"),
    [
        (TREE, {}, "mask_indptr"),
        (TREE, {"mask_indptr": [0, 0, 1]}, "mask_indptr"),
        (TREE, {"mask_indptr": [0, 1, 2], "kv_lens": [1, 9]}, "kv_lens"),
        (TREE_WINDOW, {"mask_indptr": [0, 1, 2]}, "q_positions"),
    ],
)
def test_a_bad_tree_is_refused_by_name(plan, spec, changes, argument):
    with pytest.raises(ContractError) as caught:
        plan(spec, batch(**changes), cache=CACHE)
    assert caught.value.argument == argument


def test_contiguous_keys_need_their_rows(plan):
    ragged = {"block_table": None}
    with pytest.raises(ContractError, match="kv_indptr"):
        plan(SPEC, batch(**ragged))
    with pytest.raises(ContractError, match="kv_lens: wanted at most the 8 rows of request 1"):
        plan(SPEC, batch(**ragged, kv_indptr=[0, 5, 13]))
    with pytest.raises(ContractError, match="block_table"):
        plan(SPEC, batch(kv_indptr=[0, 5, 14]))
    plan(SPEC, batch(**ragged, kv_indptr=[0, 5, 14]))


def test_run_checks_arrays_against_the_batch(plan, session):
    attention = plan(SPEC, batch(block_table=None, kv_indptr=[0, 5, 14]))
    q, k, v = (np.zeros(s, np.float32) for s in ((3, 4, 8), (14, 2, 8), (14, 2, 6)))
    assert attention.run(q, Ragged(k, v))[0].shape == (3, 4, 6)
    for bad_q, bad_kv, argument in (
        (q[:2], Ragged(k, v), "q"),
        (q, Ragged(k[:13], v[:13]), "kv.k"),
        (q, Ragged(k, v[:13]), "kv.v"),
        (q, session.allocate_cache(CACHE), "kv"),
        (q.transpose(1, 0, 2).copy().transpose(1, 0, 2), Ragged(k, v), "q"),
    ):
        with pytest.raises(ContractError) as caught:
            attention.run(bad_q, bad_kv)
        assert caught.value.argument == argument


def test_sinks_and_slopes_are_there_exactly_when_the_spec_says_so(plan):
    ragged = batch(block_table=None, kv_indptr=[0, 5, 14])
    q, k, v = (np.zeros(s, np.float32) for s in ((3, 4, 8), (14, 2, 8), (14, 2, 6)))
    with pytest.raises(ContractError, match="sinks: wanted None"):
        plan(SPEC, ragged).run(q, Ragged(k, v), sinks=np.zeros(4, np.float32))
    with_sinks = plan(AttentionSpec(4, 2, 8, 6, 0.3, sinks=True), ragged)
    with pytest.raises(ContractError, match="sinks: wanted an array"):
        with_sinks.run(q, Ragged(k, v))
    with pytest.raises(ContractError, match="sinks"):
        with_sinks.run(q, Ragged(k, v), sinks=np.zeros(2, np.float32))


@given(st.data())
def test_no_batch_crashes_the_check(data):
    """Whatever integers come, the answer is a plan or a ContractError."""
    from opsocket.operators.attention import validate_attention_batch

    integers = st.lists(st.integers(-3, 14), max_size=5)
    values = {
        "q_indptr": np.array(data.draw(integers), dtype=np.int64),
        "kv_lens": np.array(data.draw(integers), dtype=np.int64),
        "block_table": np.array(data.draw(integers), dtype=np.int64).reshape(1, -1),
    }

    class Planned:
        spec = SPEC
        request = type("R", (), {"bounds": Bounds(), "cache": CACHE})

    try:
        validate_attention_batch(AttentionBatch(**values), Planned())
    except ContractError:
        return
    lens, table = values["kv_lens"], values["block_table"]
    used = -(-lens // CACHE.block_size)
    assert all(0 <= b < CACHE.num_blocks for row, n in zip(table, used, strict=True) for b in row[:n])
