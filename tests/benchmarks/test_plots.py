"""benchmarks/plot.py: what it draws from results, and what it says of files that are none."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import plot
import pytest
from measurements import ResultsError, load


def attention(system: str, context: int, seconds: float, dtype: str = "bf16") -> dict:
    facts = {
        "op": "attention", "cache": "bf16", "context": context, "batch": 1, "q_len": 1, "q_heads": 32, "kv_heads": 8,
        "head_dim": 128, "dtype": dtype,
    }  # fmt: skip
    case = {"kind": "decode", "label": f"1 x {context}", "limit": "read", "operations": 16384.0 * context}
    return {
        "system": system, "case": case | {"facts": facts}, "size": 4096 * context,
        "seconds": [seconds, 0.9 * seconds, 1.1 * seconds], "limit_rates": [40e9, 41e9, 39e9],
    }  # fmt: skip


def whole(system: str, prompt: int, batch: int, rate: float) -> dict:
    case = {"prompt": prompt, "batch": batch, "decode": 4}
    return {"system": system, "case": case, "prompt_rates": [9 * rate], "decode_rates": [rate, 0.8 * rate, 1.2 * rate]}


OPERATORS = {
    "cpu": "A processor",
    "threads": 2,
    "rows": [
        attention("opsocket", 1024, 125e-6),
        attention("opsocket", 4096, 500e-6),
        attention("vllm", 1024, 300e-6),
        attention("vllm", 4096, 1200e-6),
    ],
}
MODEL = {
    "cpu": "A processor",
    "threads": 2,
    "rows": [whole(s, p, b, r / b) for s, r in (("opsocket", 300), ("llama.cpp", 130))
             for p, b in ((1, 1), (1024, 1), (1, 8))],
}  # fmt: skip
LIMITS = {
    "device": "cpu:0",
    "device_name": "A processor",
    "limits": [
        {"name": "read", "unit": "bytes", "threads": 1, "per_second": 20e9},
        {"name": "read", "unit": "bytes", "threads": 2, "per_second": 40e9},
        {"name": "int8", "unit": "operations", "threads": 2, "per_second": 900e9},
        {"name": "bf16", "unit": "operations", "threads": 2, "per_second": 450e9},
    ],
}


@pytest.fixture
def files(tmp_path) -> list[str]:
    found = []
    for name, content in (("operators", OPERATORS), ("model", MODEL), ("limits", LIMITS)):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        found.append(str(path))
    return found


def with_value(document: dict, place: list, value: object) -> dict:
    changed = copy.deepcopy(document)
    at = changed
    for step in place[:-1]:
        at = at[step]
    at[place[-1]] = value
    return changed


@pytest.mark.parametrize(
    ("document", "field", "expected"),
    [
        (with_value(OPERATORS, ["rows", 1, "seconds", 2], "fast"), "rows[1].seconds[2]", 'positive number, got "fast"'),
        (with_value(OPERATORS, ["rows", 0, "seconds"], []), "rows[0].seconds", "at least one number"),
        (with_value(OPERATORS, ["rows", 0, "size"], 0), "rows[0].size", "positive number, got 0"),
        (with_value(OPERATORS, ["rows", 3, "limit_rates", 0], float("nan")), "rows[3].limit_rates[0]", "positive"),
        (with_value(OPERATORS, ["rows", 2, "case", "facts"], {"op": "attention"}), "facts.context", "missing"),
        (with_value(MODEL, ["rows", 4, "case", "prompt"], True), "rows[4].case.prompt", "positive number, got true"),
        (with_value(MODEL, ["rows"], {"a": 1}), "rows", "a list"),
        (with_value(MODEL, ["threads"], None), "threads", "positive number, got null"),
        (with_value(LIMITS, ["limits", 0], 3), "limits[0]", "expected an object, got 3"),
        ({"model": "no results"}, "the file", "what operators.py"),
        ([1, 2], "the file", "what operators.py"),
    ],
)
def test_a_file_that_is_no_result_is_an_error_that_names_file_and_field(tmp_path, document, field, expected):
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ResultsError) as error:
        load([path])
    assert str(path) in str(error.value)
    assert field in str(error.value)
    assert expected in str(error.value)


@pytest.mark.parametrize("text", ["{", "", "\udcff"])
def test_a_file_that_is_no_json_is_an_error_that_names_it(tmp_path, text):
    path = tmp_path / "cut.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ResultsError, match=r"cut\.json"):
        load([path])
    with pytest.raises(ResultsError, match=r"absent\.json"):
        load([tmp_path / "absent.json"])


def test_the_machine_is_named_with_its_threads_whatever_comes_first(files):
    assert load([Path(files[2]), Path(files[0])]).machine == "A processor, 2 threads"


class TestDrawing:
    @pytest.fixture(autouse=True)
    def _matplotlib(self):
        pytest.importorskip("matplotlib")

    def test_every_plot_with_data_is_drawn_with_its_systems_and_units(self, files, tmp_path, capsys):
        out = tmp_path / "plots"
        assert plot.main([*files, "--out", str(out)]) == 0
        drawn = {path.stem: path.read_text() for path in out.iterdir()}
        assert set(drawn) == {"roofline", "share", "model", "context-model", "context-attention", "batch-model"}
        assert "batch-operators: nothing measured" in capsys.readouterr().err
        for name in ("roofline", "share", "context-attention"):
            assert ">opsocket" in drawn[name].replace("> opsocket", ">opsocket"), name
            assert "vllm" in drawn[name], name
        for name in ("model", "context-model", "batch-model"):
            assert "llama.cpp" in drawn[name], name
        assert "microseconds per call" in drawn["context-attention"]
        assert "reading memory: 40 GB/s" in drawn["roofline"]
        assert "int8 900" in drawn["roofline"]
        assert "decode after 1024" in drawn["model"]

    def test_the_same_numbers_give_the_same_file_and_dark_pages_have_colours(self, files, tmp_path):
        texts = []
        for name in ("a", "b"):
            assert plot.main([*files, "--out", str(tmp_path / name), "--only", "share"]) == 0
            texts.append((tmp_path / name / "share.svg").read_text())
        assert texts[0] == texts[1]
        assert "prefers-color-scheme:dark" in texts[0]
        assert len(texts[0]) < 60_000

    def test_points_are_medians_and_whiskers_reach_the_least_and_the_most(self, files):
        from charts import context_attention

        (axes,) = context_attention(load([Path(files[0])])).axes
        (ours, *_), (theirs, *_) = axes.containers
        assert ours.get_xdata().tolist() == [1024, 4096]
        assert ours.get_ydata() == pytest.approx([125, 500])
        assert theirs.get_ydata() == pytest.approx([300, 1200])
        ends = [segment[:, 1].tolist() for segment in axes.containers[0][2][0].get_segments()]
        assert ends == [pytest.approx([112.5, 137.5]), pytest.approx([450, 550])]

    def test_a_share_is_of_the_limit_beside_the_samples(self, files):
        from charts import share

        (axes,) = share(load([Path(files[0])])).axes
        widths = [bar.get_width() for bar in axes.patches if bar.get_width()]
        assert widths == pytest.approx([100 * 4096 * 1024 / 125e-6 / 40e9] * 2)

    def test_a_later_file_replaces_an_earlier_one(self, files, tmp_path):
        from charts import context_model

        again = tmp_path / "again.json"
        again.write_text(json.dumps(MODEL | {"rows": [whole("opsocket", 1024, 1, 200)]}))
        (axes,) = context_model(load([Path(files[1]), again])).axes
        assert axes.containers[0][0].get_ydata() == pytest.approx([1000 / 300, 1000 / 200])

    def test_bad_files_and_names_end_with_2(self, files, tmp_path, capsys):
        broken = tmp_path / "broken.json"
        broken.write_text("{}")
        assert plot.main([files[0], str(broken)]) == 2
        assert "broken.json" in capsys.readouterr().err
        with pytest.raises(SystemExit) as ended:
            plot.main([*files, "--only", "pie"])
        assert ended.value.code == 2
        assert "roofline" in capsys.readouterr().err


def test_without_matplotlib_it_says_what_to_install(files, monkeypatch, capsys):
    import sys

    for name in [name for name in sys.modules if name.split(".")[0] in ("matplotlib", "charts")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert plot.main(files) == 2
    assert "pip install 'opsocket[bench]'" in capsys.readouterr().err
