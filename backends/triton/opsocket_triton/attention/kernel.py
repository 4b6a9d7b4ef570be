"""Attention as one kernel: a tile of query rows against a run of keys, softmax online.

Method: online softmax over tiles of keys (Milakov and Gimelshein 2018; Dao et al. 2022), and runs of keys that are
computed apart and merged (flash decoding, Dao et al. 2023). Rows of a tile are (query, head) pairs of one KV head,
row = query * group + head: the query heads of a KV head share every byte of K and V that is read, and a group of any
size fills its tiles.

What is run is a list of items that the host makes from a batch (`schedule.py`); an item says which rows meet which
keys, so that one grid serves prefill, chunks, decode and verification at once, and a graph can be replayed with
another list.

Bytes: each item reads its keys and values once, (Dqk + Dvo) times the bytes of a code for each key, and writes one
output row per row, or in f32 where its keys are a part of a tile's. Operations: 2 (Dqk + Dvo) per row and key. A decode
tile does 2 rows of them per byte of a 16-bit cache: the memory's rate limits it. A prefill tile is limited by the
matrix units, or by f32's where the request's numerics don't permit these.
"""

from __future__ import annotations

import triton
import triton.language as tl

from opsocket_triton.attention.accepted import ATTEND
from opsocket_triton.cache.codes import decode, unpack
from opsocket_triton.functions import exp_exact, log_exact, tanh_approx, tanh_exact

HEADER = tl.constexpr(16)
"""Numbers before the first item: (count, place) of the small tiles', the large tiles' and the merges' lists; then query
heads of a KV head, window to the left and to the right, block size, its logarithm where it is a power of two, whether
there are sinks, whether the LSE is wanted. Not arguments, which a compiler specializes on."""
UNSPECIALIZED = (
    "k_scale", "v_scale", "sinks", "alibi", "tree", "lse", "states", "lse_row", "ks_block", "ks_head", "vs_block",
    "vs_head",
)  # fmt: skip
"""Arguments whose alignment helps nothing: a kernel for each would be compiled."""
ITEM = tl.constexpr(16)
"""Numbers of an item; `schedule.ITEM` names them."""

ACCEPTED = ATTEND


@triton.jit
def exponential(x, EXACT: tl.constexpr):
    """e^x, or where it need not be exact 2^x: logits are then in units of ln 2."""
    if EXACT:
        return exp_exact(x)
    else:
        return tl.exp2(x)


@triton.jit
def natural(top, total, EXACT: tl.constexpr):
    """The natural logarithm of total * e^top (2^top); total >= 1."""
    if EXACT:
        return top + log_exact(total)
    else:
        return (top + tl.log2(total)) * 0.6931471805599453


@triton.jit
def _as(x, TYPE: tl.constexpr):
    if TYPE == "bf16":
        return x.to(tl.bfloat16)
    elif TYPE == "f16":
        return x.to(tl.float16)
    else:
        return x.to(tl.float32)


@triton.jit
def _codes(plane, rows, seen, FROM: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr, CODE: tl.constexpr,
           TYPE: tl.constexpr):  # fmt: skip
    """[keys, WIDTH] of type TYPE: channels FROM and on of what the codes of some keys stand for before any scale.

    rows i64[keys]: where a key's codes begin, in elements of the plane. seen bool[keys]: others are not read. What is
    not read, and channels at or past DIM, hold a finite number.
    """
    PER: tl.constexpr = 4 if CODE == "i2" else 2 if CODE == "i4" else 1
    places = FROM // PER + tl.arange(0, WIDTH // PER)
    pointers = plane + rows[:, None] + places[None, :]
    if FROM + WIDTH > DIM:
        x = tl.load(pointers, mask=seen[:, None] & (places[None, :] < DIM // PER), other=0)
    else:
        x = tl.load(pointers, mask=seen[:, None], other=0)
    OUT: tl.constexpr = tl.bfloat16 if TYPE == "bf16" else tl.float16 if TYPE == "f16" else tl.float32
    return decode(unpack(x, CODE), CODE, OUT)


@triton.jit
def _channel_scale(scale, head, FROM: tl.constexpr, WIDTH: tl.constexpr, DIM_SCALE, DIM: tl.constexpr):
    """f32[WIDTH] of scales f32[Hkv, DIM_SCALE]."""
    places = FROM + tl.arange(0, WIDTH)
    return tl.load(scale + head * DIM_SCALE + places, mask=places < DIM, other=0.0)


@triton.jit
def _hide(s, keys, end, low, high, tree, mask0, history, query, q_len, TREE: tl.constexpr):
    """Logits [rows, keys] with -inf where a row does not see a key."""
    visible = (keys[None, :] >= low[:, None]) & (keys[None, :] < high[:, None]) & (keys < end)[None, :]
    if TREE:
        new = keys - history
        bit = query[:, None] * q_len + new[None, :]
        asked = visible & (new[None, :] >= 0)
        byte = tl.load(tree + mask0 + (bit >> 3), mask=asked, other=255).to(tl.int32)
        visible = visible & (((byte >> (bit & 7)) & 1) == 1)
    return tl.where(visible, s, float("-inf"))


@triton.jit
def _wide(item, at):
    """An i64 of two numbers of an item, the low half first."""
    low = tl.load(item + at).to(tl.uint32, bitcast=True).to(tl.int64)
    return low | (tl.load(item + at + 1).to(tl.int64) << 32)


@triton.jit
def _store(out, parts, pointers, part_rows, valid, direct, acc, FROM: tl.constexpr, WIDTH: tl.constexpr,
           DIM: tl.constexpr):  # fmt: skip
    """Columns FROM and on of a tile's rows, to the output or to the parts."""
    columns = FROM + tl.arange(0, WIDTH)
    inside = valid[:, None] & (columns[None, :] < DIM)
    if direct:
        tl.store(out + pointers[:, None] + columns[None, :], acc.to(out.dtype.element_ty), mask=inside)
    else:
        tl.store(parts + part_rows[:, None] * DIM + columns[None, :], acc, mask=inside)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def attend(ints, q, k, v, k_scale, v_scale, sinks, alibi, tree, out, lse, parts, states,
           q_row, k_block, k_head, k_token, v_block, v_head, v_token, ks_block, ks_head, vs_block, vs_head,
           out_row, lse_row, scale, cap, unit,
           LARGE: tl.constexpr, UNMASKED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
           PAGED: tl.constexpr, POWER: tl.constexpr,
           TREE: tl.constexpr, ALIBI: tl.constexpr, CAP: tl.constexpr, EXACT: tl.constexpr,
           EXACT_TANH: tl.constexpr, SHARE: tl.constexpr,
           DIM_QK: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
           DIM_VO: tl.constexpr, V0: tl.constexpr, V1: tl.constexpr,
           K_CODE: tl.constexpr, V_CODE: tl.constexpr, K_SCALE: tl.constexpr, V_SCALE: tl.constexpr,
           QK: tl.constexpr, PV: tl.constexpr):  # fmt: skip
    """Item program 0 of the list of small or LARGE tiles, for KV head program 1.

    q [T, Hq, DIM_QK]; out [T, Hq, DIM_VO], lse f32[T, Hq]; parts f32[rows, DIM_VO] and states f32[rows, 2] (top, total)
    of items that are one of several for their rows. k, v: planes (block, head, token, dim), or PAGED off [Tk, Hkv, D];
    f8 codes as u8. k_scale, v_scale: by K_SCALE, V_SCALE "none", "scalar" (of a head), "channel", "token_head".
    scale, cap, unit: of logits, in the exponential's unit, cap's divided out of scale; K's
    scalar scale is not in it. QK, PV: the types of factors, "f32", "bf16" or "f16". SHARE: V is the first D0 channels
    of K. UNMASKED: masks are left out where every row sees every key of a tile.
    """
    number = tl.program_id(0)
    head = tl.program_id(1)
    if LARGE:
        count = tl.load(ints + 2)
        item = ints + tl.load(ints + 3) + number * ITEM
    else:
        count = tl.load(ints)
        item = ints + HEADER + number * ITEM
    if number >= count:
        return
    group = tl.load(ints + 6)
    left = tl.load(ints + 7).to(tl.int64)
    right = tl.load(ints + 8).to(tl.int64)
    block_size = tl.load(ints + 9)
    block_shift = tl.load(ints + 10)
    q_row0 = tl.load(item).to(tl.int64)
    q_len = tl.load(item + 1)
    kv_len = tl.load(item + 2)
    position0 = tl.load(item + 3)
    first_row = tl.load(item + 4)
    begin = tl.load(item + 5)
    end = tl.load(item + 6)
    full_begin = tl.load(item + 7)
    full_end = tl.load(item + 8)
    part = tl.load(item + 9)
    table = tl.load(item + 10)
    positions = tl.load(item + 11)
    kv_row0 = _wide(item, 12)
    mask0 = _wide(item, 14)

    row = first_row + tl.arange(0, BM)
    valid = row < q_len * group
    query = row // group
    q_head = head * group + (row - query * group)
    position = tl.load(ints + positions + query, mask=valid & (positions >= 0), other=0)
    position = tl.where(positions >= 0, position, position0 + query)
    # In 64 bits, where an unlimited window does not wrap, and then within the keys.
    low = tl.maximum(position.to(tl.int64) - left, 0)
    high = tl.minimum(position.to(tl.int64) + right + 1, kv_len.to(tl.int64))
    low = tl.minimum(low, kv_len.to(tl.int64)).to(tl.int32)
    high = tl.where(valid, tl.maximum(high, 0), -1).to(tl.int32)

    q_rows = (q_row0 + query) * q_row + q_head * DIM_QK
    d0 = tl.arange(0, D0)
    q0 = tl.load(q + q_rows[:, None] + d0[None, :], mask=valid[:, None] & (d0[None, :] < DIM_QK), other=0.0)
    q0 = _as(q0, QK)
    if D1 > 0:
        d1 = D0 + tl.arange(0, D1)
        q1 = tl.load(q + q_rows[:, None] + d1[None, :], mask=valid[:, None] & (d1[None, :] < DIM_QK), other=0.0)
        q1 = _as(q1, QK)
    else:
        q1 = q0

    k_channel0 = tl.zeros([D0], tl.float32)
    k_channel1 = k_channel0
    if K_SCALE == "scalar":
        scale = scale * tl.load(k_scale + head * ks_head)
    elif K_SCALE == "channel":
        k_channel0 = _channel_scale(k_scale, head, 0, D0, ks_head, DIM_QK)
        if D1 > 0:
            k_channel1 = _channel_scale(k_scale, head, D0, D1, ks_head, DIM_QK)
        if QK == "f32":
            # Rounds as often as k times it, once for all keys. A lane without matrix units, which holds whole rows of
            # its factors, would hold the scales beside them, throughout the loop.
            q0 = q0 * k_channel0[None, :]
            q1 = q1 * k_channel1[None, :] if D1 > 0 else q0
    slope = tl.zeros([BM], tl.float32)
    if ALIBI:
        slope = tl.load(alibi + q_head, mask=valid, other=0.0) * unit

    head64 = head.to(tl.int64)
    k_base, v_base = head64 * k_head, head64 * v_head
    ks_base, vs_base = head64 * ks_head, head64 * vs_head
    history = kv_len - q_len
    top = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    acc0 = tl.zeros([BM, V0], tl.float32)
    acc1 = tl.zeros([BM, V1 if V1 > 0 else 1], tl.float32)

    for start in range(begin, end, BN):
        keys = start + tl.arange(0, BN)
        seen = keys < end
        if PAGED:
            if POWER:
                place = keys >> block_shift
                within = keys - (place << block_shift)
            else:
                place = keys // block_size
                within = keys - place * block_size
            page = tl.load(ints + table + place, mask=seen, other=0).to(tl.int64)
            k_rows = k_base + page * k_block + within * k_token
        else:
            page = tl.zeros([BN], tl.int64)
            within = keys
            k_rows = k_base + (kv_row0 + keys) * k_token
        k0 = _codes(k, k_rows, seen, 0, D0, DIM_QK, K_CODE, QK)
        if K_SCALE == "channel" and QK != "f32":
            k0 = _as(k0.to(tl.float32) * k_channel0[None, :], QK)
        s = tl.dot(q0, tl.trans(k0), input_precision="ieee")
        if D1 > 0:
            k1 = _codes(k, k_rows, seen, D0, D1, DIM_QK, K_CODE, QK)
            if K_SCALE == "channel" and QK != "f32":
                k1 = _as(k1.to(tl.float32) * k_channel1[None, :], QK)
            s = tl.dot(q1, tl.trans(k1), s, input_precision="ieee")

        if K_SCALE == "token_head":
            k_scales = tl.load(k_scale + ks_base + page * ks_block + within, mask=seen, other=0.0).to(tl.float32)
            s = s * (k_scales * scale)[None, :]
        else:
            s = s * scale
        if CAP:
            if EXACT_TANH:
                s = tanh_exact(s) * cap
            else:
                s = tanh_approx(s) * cap
        if ALIBI:
            s = s - slope[:, None] * tl.abs(position[:, None] - keys[None, :]).to(tl.float32)
        if UNMASKED:
            if (start < full_begin) | (start + BN > full_end):
                s = _hide(s, keys, end, low, high, tree, mask0, history, query, q_len, TREE)
        else:
            s = _hide(s, keys, end, low, high, tree, mask0, history, query, q_len, TREE)

        new_top = tl.maximum(top, tl.max(s, 1))
        # Where nothing has been seen, -inf less -inf would be NaN.
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        decay = exponential(top - base, EXACT)
        p = exponential(s - base[:, None], EXACT)
        total = total * decay + tl.sum(p, 1)
        top = new_top

        if PAGED:
            v_rows = v_base + page * v_block + within * v_token
        else:
            v_rows = v_base + (kv_row0 + keys) * v_token
        if V_SCALE == "token_head":
            if SHARE:
                p = p * k_scales[None, :]
            else:
                v_scales = tl.load(v_scale + vs_base + page * vs_block + within, mask=seen, other=0.0).to(tl.float32)
                p = p * v_scales[None, :]
        weights = _as(p, PV)
        if SHARE:
            v0 = _as(k0, PV)
        else:
            v0 = _codes(v, v_rows, seen, 0, V0, DIM_VO, V_CODE, PV)
        acc0 = tl.dot(weights, v0, acc0 * decay[:, None], input_precision="ieee")
        if V1 > 0:
            v1 = _codes(v, v_rows, seen, V0, V1, DIM_VO, V_CODE, PV)
            acc1 = tl.dot(weights, v1, acc1 * decay[:, None], input_precision="ieee")

    # From what the loop needs too: a truth value for each row would hold registers throughout it.
    valid = high >= 0
    direct = part < 0
    out_rows = (q_row0 + query) * out_row + q_head * DIM_VO
    part_rows = part.to(tl.int64) * tl.num_programs(1) + head * BM + tl.arange(0, BM)
    if direct:
        # Without sinks one of -inf, which changes nothing.
        sink = tl.load(sinks + q_head, mask=valid & (tl.load(ints + 11) != 0), other=float("-inf")) * unit
        new_top = tl.maximum(top, sink)
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        decay = exponential(top - base, EXACT)
        total = total * decay + exponential(sink - base, EXACT)
        top = new_top
        empty = total == 0.0
        value = tl.where(empty, float("-inf"), natural(top, tl.where(empty, 1.0, total), EXACT))
        tl.store(lse + (q_row0 + query) * lse_row + q_head, value, mask=valid & (tl.load(ints + 12) != 0))
        factor = decay * tl.where(empty, 0.0, tl.math.div_rn(1.0, tl.where(empty, 1.0, total)))
    else:
        tl.store(states + part_rows * 2, top, mask=valid)
        tl.store(states + part_rows * 2 + 1, total, mask=valid)
        factor = tl.full([BM], 1.0, tl.float32)
    factor0 = factor[:, None]
    factor1 = factor[:, None]
    if V_SCALE == "scalar":
        v_scalar = tl.load(v_scale + head * vs_head)
        factor0 = factor0 * v_scalar
        factor1 = factor1 * v_scalar
    elif V_SCALE == "channel":
        factor0 = factor0 * _channel_scale(v_scale, head, 0, V0, vs_head, DIM_VO)[None, :]
        if V1 > 0:
            factor1 = factor1 * _channel_scale(v_scale, head, V0, V1, vs_head, DIM_VO)[None, :]
    _store(out, parts, out_rows, part_rows, valid, direct, acc0 * factor0, 0, V0, DIM_VO)
    if V1 > 0:
        _store(out, parts, out_rows, part_rows, valid, direct, acc1 * factor1, V0, V1, DIM_VO)
