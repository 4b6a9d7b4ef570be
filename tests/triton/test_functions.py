"""f32 functions that are closer than a chip's own, against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from opsocket.operators import DeviceInfo
from opsocket_triton import mode

mode.interpret(DeviceInfo("cuda", 0, "sm_90", "sm_90", 2**30, numerics="interpreted"))

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from opsocket_triton import functions  # noqa: E402
from opsocket_triton.launch import launch  # noqa: E402

BLOCK = 1 << 16


@triton.jit
def apply(x, y, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + at)
    if FUNCTION == "exp_exact":
        values = functions.exp_exact(values)
    elif FUNCTION == "tanh_exact":
        values = functions.tanh_exact(values)
    elif FUNCTION == "tanh_approx":
        values = functions.tanh_approx(values)
    else:
        values = functions.log_exact(values)
    tl.store(y + at, values)


def _apply(function: str, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values as f64, as many as fill blocks, and the function's f32 of them."""
    x = torch.from_numpy(np.resize(values, -(-values.size // BLOCK) * BLOCK).astype(np.float32))
    y = torch.empty_like(x)
    with np.errstate(all="ignore"):
        launch(apply, (len(x) // BLOCK,), x=x, y=y, FUNCTION=function, BLOCK=BLOCK)
    return x.double().numpy(), y.double().numpy()


def _units(got: np.ndarray, want: np.ndarray, least: float = 0.0) -> float:
    """The largest difference in units in the last place of f32."""
    with np.errstate(all="ignore"):
        unit = np.spacing(np.maximum(np.abs(want), least).astype(np.float32)).astype(np.float64)
    return float((np.abs(got - want) / unit).max())


def test_exponential_within_two_units_down_to_subnormal_results() -> None:
    x, y = _apply("exp_exact", np.concatenate([np.linspace(-103.9, 88.7, 600_000), np.linspace(-1, 1, 300_000)]))
    assert _units(y, np.exp(x)) < 2


def test_hyperbolic_tangent_within_two_units_on_both_sides_of_its_branch() -> None:
    x, y = _apply("tanh_exact", np.concatenate([np.linspace(-12, 12, 600_000), np.logspace(-30, 2, 200_000)]))
    assert _units(y, np.tanh(x)) < 2


def test_approximate_tangent_within_its_permission() -> None:
    x, y = _apply("tanh_approx", np.concatenate([np.linspace(-12, 12, 600_000), np.logspace(-30, 2, 200_000)]))
    assert float((np.abs(y - np.tanh(x)) / np.abs(np.tanh(x) + (x == 0))).max()) < 2.0**-12


def test_logarithm_within_two_units() -> None:
    x, y = _apply("log_exact", np.concatenate([np.logspace(-37, 38, 600_000), np.linspace(0.4, 3, 300_000)]))
    assert _units(y, np.log(x), least=0.5) < 2


@pytest.mark.parametrize(
    ("function", "x", "y"),
    [
        ("exp_exact", [-np.inf, -1000, 0, 1000, np.inf, np.nan], [0, 0, 1, np.inf, np.inf, np.nan]),
        ("tanh_exact", [-np.inf, 0, np.inf, np.nan], [-1, 0, 1, np.nan]),
        ("tanh_approx", [-np.inf, 0, np.inf, np.nan], [-1, 0, 1, np.nan]),
    ],
)
def test_at_the_ends(function: str, x: list[float], y: list[float]) -> None:
    assert np.array_equal(_apply(function, np.array(x))[1][: len(y)], np.array(y, np.float64), equal_nan=True)
