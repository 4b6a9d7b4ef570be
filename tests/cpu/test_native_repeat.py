"""A run like the one before goes the short way: the same results, the same errors, and nothing kept alive."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import opsocket
from opsocket.operators import (
    AddSpec,
    ArgmaxSpec,
    ContractError,
    MatmulSpec,
    MoECombineSpec,
    MoERouteSpec,
    MoESortSpec,
    QuantizeActivationSpec,
    Request,
    RMSNormSpec,
    RopeSpec,
    SiluMulSpec,
    Spec,
    TakeRowsSpec,
)
from opsocket.quantization import get_format, quantize
from opsocket_cpu.native import repeat
from opsocket_cpu.native.library import library

# By what is there, not by whether the short way could be set up: a short way that is lost must not pass as skipped.
pytestmark = pytest.mark.skipif(
    library() is None or not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"),
    reason="no native library, or a torch whose tensors can't be read from C",
)

ROWS, WIDTH = 3, 64


def _floats(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape).to(dtype)


def _rows(width: int = WIDTH) -> torch.Tensor:
    """Of a wider matrix, as a fused projection leaves them."""
    return _floats(ROWS, 2 * width)[:, :width]


def _numbers() -> torch.Tensor:
    return torch.randint(0, ROWS, (ROWS,))


CASES: dict[str, tuple[Spec, Callable[[], tuple[Any, ...]], torch.dtype | None]] = {
    "add": (AddSpec(WIDTH), lambda: (_rows(), _rows()), torch.float32),
    "silu_mul": (SiluMulSpec(WIDTH), lambda: (_rows(), _rows()), torch.float32),
    "rms_norm": (RMSNormSpec(WIDTH, 1e-5), lambda: (_rows(), _floats(WIDTH)), torch.float32),
    "rms_norm of a sum": (
        RMSNormSpec(WIDTH, 1e-5, "bf16", True),
        lambda: (_rows().bfloat16(), _floats(WIDTH), _rows().bfloat16()),
        torch.bfloat16,
    ),
    "rope": (RopeSpec(2, 32, 32, 1e4), lambda: (_floats(ROWS, 2, 32), _numbers()), torch.float32),
    "rope with factors": (
        RopeSpec(2, 32, 32, 1e4, factors=True),
        lambda: (_floats(ROWS, 2, 32), _numbers(), 1 + torch.rand(16)),
        torch.float32,
    ),
    "take_rows": (TakeRowsSpec(WIDTH), lambda: (_rows(), _numbers()), torch.float32),
    "argmax": (ArgmaxSpec(WIDTH), lambda: (_rows(),), torch.int64),
    "moe_route": (MoERouteSpec(WIDTH, 4), lambda: (_rows(),), None),
    "moe_sort": (MoESortSpec(ROWS, 2), lambda: (torch.randint(0, ROWS, (ROWS, 2)),), None),
    "moe_combine": (
        MoECombineSpec(WIDTH, 2),
        lambda: (_rows(), torch.randint(0, ROWS, (ROWS, 2)), _floats(ROWS, 2)),
        torch.float32,
    ),
    "quantize_activation": (QuantizeActivationSpec(WIDTH), lambda: (_rows(),), None),
}  # fmt: skip


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def session(request: Any) -> Iterator[Any]:
    with opsocket.open("cpu", threads=request.param) as opened:
        yield opened


def _plan(session: Any, spec: Spec) -> Any:
    plan = session.plan(Request(spec))
    assert plan.provider == "native"
    return plan


def _only_short(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the long way is an error."""
    monkeypatch.setattr(plan, "_run", None)


def _results(found: Any) -> tuple[torch.Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.parametrize("given", [False, True], ids=["made", "given"])
@pytest.mark.parametrize("name", CASES)
def test_a_repeated_run_has_the_bits_of_a_first_one(
    session: Any, name: str, given: bool, monkeypatch: pytest.MonkeyPatch
):
    spec, arguments, out_dtype = CASES[name]
    if given and out_dtype is None:
        pytest.skip(f"{spec.op} takes no array to write")
    plan, earlier = _plan(session, spec), []
    for again in range(4):
        args = arguments()
        want = _results(_plan(session, spec).run(*args))
        out = {"out": torch.full_like(want[0], 99)} if given else {}
        got = _results(plan.run(*args, **out))
        for a, b in zip(got, want, strict=True):
            assert a.dtype is b.dtype
            assert a.shape == b.shape
            assert torch.equal(a, b)
        assert not given or got[0] is out["out"]
        assert not {array.data_ptr() for array in got} & {array.data_ptr() for array in earlier}
        earlier += got
        if again == 1:
            _only_short(plan, monkeypatch)


def _weight(session: Any, fmt: str, n: int = 32) -> tuple[Any, Any]:
    request = Request(MatmulSpec(fmt, n, WIDTH))
    weight = np.random.default_rng().standard_normal((n, WIDTH), np.float32)
    return request, session.prepare_weight(request, quantize(get_format(fmt), weight))


@pytest.mark.parametrize("fmt", ["q4_0", "q4_0_a8"])
def test_products_know_each_weight(session: Any, fmt: str, monkeypatch: pytest.MonkeyPatch):
    request, one = _weight(session, fmt)
    other = _weight(session, fmt)[1]
    plan = session.plan(request)
    for again in range(4):
        for weight in (one, other):
            x = _rows()
            want = session.plan(request).run(x, weight)
            assert torch.equal(plan.run(x, weight), want)
        if again == 1:
            _only_short(plan, monkeypatch)


def test_a_weight_is_not_kept(session: Any):
    request, weight = _weight(session, "q4_0_a8")
    plan = session.plan(request)
    for _ in range(2):
        plan.run(_rows(), weight)
    assert plan._repeats._known
    gone, content = weakref.ref(weight), weakref.ref(weight.content.data)
    del weight
    gc.collect()
    assert gone() is None
    assert content() is None
    assert not plan._repeats._known


def _in_place(array: torch.Tensor) -> torch.Tensor:
    """The same object, with another shape."""
    array.resize_(ROWS + 1, WIDTH)
    return array


WRONG: dict[str, Callable[[torch.Tensor], Any]] = {
    "more rows": lambda x: _floats(ROWS + 1, WIDTH),
    "another width": lambda x: _floats(ROWS, WIDTH - 1),
    "another rank": lambda x: _floats(ROWS, WIDTH, 1),
    "another dtype": lambda x: x.half(),
    "columns apart": lambda x: _floats(ROWS, 2 * WIDTH)[:, ::2],
    "turned": lambda x: _floats(WIDTH, ROWS).T,
    "negated": torch._neg_view,
    "resized in place": _in_place,
    "another device": lambda x: x.to("meta"),
    "None": lambda x: None,
    "a list": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "a class": lambda x: torch.Tensor,
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("place", ["a", "b", "out"])
def test_what_is_wrong_is_said_as_on_a_first_run(session: Any, wrong: str, place: str):
    if (place, wrong) == ("out", "None"):
        pytest.skip("legal")
    plan, said = _plan(session, AddSpec(WIDTH)), []
    good = [_floats(ROWS, WIDTH) for _ in range(3)]
    for _ in range(2):
        plan.run(good[0], good[1], out=good[2])
    args = {"a": good[0], "b": good[1], "out": good[2]}
    args[place] = WRONG[wrong](args[place])
    for one in (_plan(session, AddSpec(WIDTH)), plan):
        with pytest.raises(ContractError) as error:
            one.run(args["a"], args["b"], out=args["out"])
        said.append(str(error.value))
    assert said[0] == said[1]
    want = torch.ones(ROWS, WIDTH)
    assert torch.equal(plan.run(want, want), want + want)


def test_a_run_of_a_closed_session_is_not_repeated():
    with opsocket.open("cpu", threads=1) as session:
        plan, x = _plan(session, AddSpec(WIDTH)), _rows()
        out = plan.run(x, x)
        for _ in range(2):
            plan.run(x, x, out=out)
        kept = out.clone()
    with pytest.raises(ContractError, match="cpu:0 open, got a closed session"):
        plan.run(torch.zeros_like(x), x, out=out)
    assert torch.equal(out, kept)


def test_a_subclass_of_tensor_goes_the_long_way(session: Any):
    plan = _plan(session, RMSNormSpec(WIDTH, 1e-5))
    x, weight = _rows(), torch.nn.Parameter(_floats(WIDTH))
    plan.run(x, weight)
    first = plan.run(x, weight)
    weight.data = torch.zeros(WIDTH)
    assert first.any()
    assert not plan.run(x, weight).any()


def test_a_repeated_run_is_observed_and_captured(session: Any):
    plan, seen = _plan(session, AddSpec(WIDTH)), []
    a, b, out = (_floats(ROWS, WIDTH) for _ in range(3))
    for _ in range(2):
        plan.run(a, b, out=out)

    class Observer:
        def __init__(self, plan: Any) -> None:
            seen.append(plan)

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    session.observer = Observer
    plan.run(a, b, out=out)
    session.observer = None
    assert seen == [plan]
    with session.capture() as graph:
        plan.run(a, b, out=out)
    assert len(graph.calls) == 1


def test_a_session_that_checks_content_checks_it_each_time():
    with opsocket.open("cpu", threads=1, checked="deep") as deep:
        plan, x = _plan(deep, TakeRowsSpec(WIDTH)), _rows()
        for _ in range(2):
            plan.run(x, _numbers())
        with pytest.raises(ContractError, match="0 to 2"):
            plan.run(x, torch.full((ROWS,), ROWS))


def test_a_torch_without_the_table_goes_the_long_way(session: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(repeat, "_begin", lambda: 0)
    plan, a = _plan(session, AddSpec(WIDTH)), _rows()
    for _ in range(3):
        assert torch.equal(plan.run(a, a), a + a)
