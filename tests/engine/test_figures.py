"""Where names of lines go, which numbers axes carry, and the plot of `opsocket bench`."""

from __future__ import annotations

from itertools import pairwise

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from opsocket.cli.main import cli
from opsocket_engine.figures import round_numbers, spread


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_names_stand_apart_in_the_order_of_their_lines(values):
    places = spread(values, 0.06)
    order = sorted(range(len(values)), key=lambda i: (values[i], i))
    ordered = [places[i] for i in order]
    assert all(b - a >= 0.06 - 1e-9 for a, b in pairwise(ordered))
    assert min(places) >= -1e-9
    assert max(places) <= 1 + 1e-9


def test_names_that_do_not_collide_stay_where_they_are():
    assert spread([0.9, 0.1, 0.5], 0.06) == [0.9, 0.1, 0.5]


@pytest.mark.parametrize(("low", "high"), [(3.1, 11.0), (2.0, 900.0), (1.0, 1e6), (0.02, 0.05)])
def test_axes_carry_a_handful_of_round_numbers(low, high):
    ticks = round_numbers(low, high)
    assert 3 <= len(ticks) <= 9
    assert all(low <= tick <= high for tick in ticks)
    assert ticks == sorted(ticks)


def spread_of(median: float) -> dict[str, float]:
    return {"median": median, "low": 0.9 * median, "high": 1.1 * median}


def test_the_plot_of_bench_names_batches_and_contexts(tmp_path):
    pytest.importorskip("matplotlib")
    from opsocket_engine.cli.bench_plot import draw

    rows = [
        {"start": start, "batch": batch, "tokens_per_second": spread_of(100 * batch)}
        for start in (0, 1024)
        for batch in (1, 8)
    ]
    report = {"device_name": "A chip", "threads": 2, "kv_format": "bf16", "model": "some/model.gguf", "decodes": rows}
    path = tmp_path / "bench.svg"
    draw(report, path)
    text = path.read_text()
    for expected in ("batch 1", "batch 8", "context 1024", "model.gguf", "milliseconds per decode step", "A chip"):
        assert expected in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--plot", "speed.txt"], ".svg or .png"),
        (["--plot", "speed.svg"], "opsocket[bench]"),
    ],
)
def test_bench_says_before_it_measures_that_it_can_not_draw(arguments, said, monkeypatch):
    monkeypatch.setattr("opsocket_engine.cli.bench.find_spec", lambda name: None)
    result = CliRunner().invoke(cli, ["bench", "--model", "no-such-model", *arguments])
    assert result.exit_code == 2
    assert said in result.output
