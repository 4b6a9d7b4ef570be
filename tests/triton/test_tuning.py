"""Which tile is taken: the choice among measured ones, what is kept of it, and a plan that was made with it."""

from __future__ import annotations

import json

import numpy as np
import pytest

import opsocket
from opsocket.operators import DeviceInfo, FormatError, MatmulSpec, Request, SessionOptions
from opsocket.quantization import get_format, quantize
from opsocket_cuda.backend import CudaBackend
from opsocket_triton import mode

DEVICE = DeviceInfo("cuda", 0, "sm_90", "sm_90", 2**30, numerics="interpreted")
mode.interpret(DEVICE)

from opsocket_triton import tuning  # noqa: E402
from opsocket_triton.matmul import tiles  # noqa: E402


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def seconds_of(table):
    """A clock that gives each choice its times in turn, and then again."""
    calls = dict.fromkeys(table, 0)

    def seconds(choice):
        times = table[choice]
        if isinstance(times, Exception):
            raise times
        calls[choice] += 1
        return times[(calls[choice] - 1) % len(times)]

    return seconds


def test_the_fastest_is_taken():
    assert tuning.fastest("a", ["b", "c"], seconds_of({"a": [3.0], "b": [2.0], "c": [2.5]})) == "b"


def test_what_is_hardly_faster_is_not_taken():
    assert tuning.fastest("a", ["b"], seconds_of({"a": [1.0], "b": [0.98]})) == "a"


def test_one_lucky_measurement_decides_nothing():
    assert tuning.fastest("a", ["b"], seconds_of({"a": [1.0], "b": [0.1, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]})) == "a"


def test_what_does_not_run_is_out():
    out_of_memory = RuntimeError("out of resource: shared memory")
    assert tuning.fastest("a", ["b", "c"], seconds_of({"a": [3.0], "b": out_of_memory, "c": [1.0]})) == "c"
    with pytest.raises(RuntimeError, match="shared memory"):
        tuning.fastest("a", ["b"], seconds_of({"a": out_of_memory, "b": [1.0]}))


def test_choices_are_kept_by_device_and_beside_each_other():
    tuning.save(DEVICE, "one", {"vector 1": [1, 32, 64, 4, 2, 8]})
    tuning.save(DEVICE, "two", {"half 16": [16, 32, 64, 4, 3, 2]})
    assert set(tuning.load(DEVICE)) == {"one", "two"}
    assert tuning.load(DeviceInfo("cuda", 0, "another chip", "sm_90", 2**30)) == {}


def test_what_another_version_kept_is_passed_over(monkeypatch):
    tuning.save(DEVICE, "one", {"vector 1": [1, 32, 64, 4, 2, 8]})
    monkeypatch.setattr(opsocket, "__version__", "999")
    assert tuning.load(DEVICE) == {}


@pytest.mark.parametrize(
    "content", ["no JSON", "[]", json.dumps({"tiles": {"one": {"vector 1": ["os.system"]}}}), json.dumps({"tiles": 3})]
)
def test_a_file_that_is_not_ours_is_an_error(content):
    file = tuning.path(DEVICE)
    file.parent.mkdir(parents=True)
    if content.startswith("{"):
        content = json.dumps(json.loads(content) | {"version": tuning._version()})
    file.write_text(content)
    with pytest.raises(FormatError):
        tuning.load(DEVICE)


@pytest.mark.parametrize("family", ["hopper", "ampere", "cdna", "rdna"])
@pytest.mark.parametrize("kind", ["vector", "f32", "half", "codes"])
def test_there_are_others_for_every_size(family, kind):
    for most in tiles.sizes(family, kind):
        assert tiles.others(kind, most)


def test_a_plan_takes_what_was_kept_for_its_request_and_gives_the_same():
    request = Request(MatmulSpec("q4_1", 72, 256))
    tensors = quantize(get_format("q4_1"), np.random.default_rng(0).standard_normal((72, 256), np.float32))
    x = np.random.default_rng(1).standard_normal((1, 256), np.float32)

    def run(options):
        with CudaBackend().open(DEVICE, options) as session:
            plan = session.plan(request)
            y = plan.run(session.upload(x), session.prepare_weight(request, tensors))
            return plan._tile(1), session.download(y)

    default, want = run(SessionOptions())
    other = tiles.Tile(1, 32, 64, 4, 2, 8)
    assert other != default
    tuning.save(DEVICE, request.work, {"vector 1": [1, 32, 64, 4, 2, 8]})
    assert run(SessionOptions())[0] == default  # nothing tuned was asked for
    tile, got = run(SessionOptions(tuned={request.work: "triton"}))
    assert tile == other
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_an_interpreted_device_measures_nothing():
    request = Request(MatmulSpec("f32", 32, 32))
    with CudaBackend().open(DEVICE, SessionOptions()) as session:
        plan = session.plan(request)
        packed = session.prepare_weight(request, {"weight": np.zeros((32, 32), np.float32)})
        plan.tune(packed, keep=True)
    assert tuning.load(DEVICE) == {}
