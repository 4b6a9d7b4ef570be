"""What a person sees when a backend can't be had."""

from __future__ import annotations

import json
import time

import pytest

pytestmark = pytest.mark.install

ADD = '{"op": "add", "spec": {"width": 8}}'
MATMUL = '{"op": "matmul", "spec": {"weight_format": "f32", "n": 8, "k": 8}}'


def test_a_missing_backend_is_told_at_once(installed, opsocket_command):
    start = time.perf_counter()
    done = opsocket_command(installed, "good", "explain", "--backend", "tpu", "--request", ADD)
    assert time.perf_counter() - start < 10
    assert done.returncode == 3
    assert done.stdout == ""
    first, second = done.stderr.splitlines()
    assert first.startswith("opsocket: backend 'tpu': not discovered: no installed plugin provides it")
    assert "TPU driver here" in first
    assert second.startswith("  hint: Install a plugin")
    assert "good" in second


def test_explain_prints_who_serves_and_why_not(installed, opsocket_command):
    done = opsocket_command(installed, "good", "explain", "--backend", "good", "--request", ADD)
    assert done.returncode == 0
    assert "add: native by numpy (sample_good.base.Add)" in done.stdout
    done = opsocket_command(installed, "good", "explain", "--backend", "good", "--json", "--request", MATMUL)
    assert done.returncode == 3
    (answer,) = json.loads(done.stdout)["requests"]
    assert answer["tier"] == "none"
    assert answer["reasons"] == [{"code": "op", "field": "op", "got": "matmul", "want": ["add"]}]
    assert answer["passed_over"][0]["provider"] == "numpy"


def test_explain_reads_files_and_lines(installed, opsocket_command, tmp_path):
    for text in (f"[{ADD}, {ADD}]", f"{ADD}\n\n{ADD}\n"):
        (tmp_path / "requests").write_text(text)
        done = opsocket_command(installed, "good", "explain", "--json", "--backend", "good", str(tmp_path / "requests"))
        assert done.returncode == 0, done.stderr
        assert [r["op"] for r in json.loads(done.stdout)["requests"]] == ["add"]


def test_explain_answers_for_an_absent_device(installed, opsocket_command):
    arguments = ("explain", "--backend", "deviceless", "--request", ADD)
    done = opsocket_command(installed, "deviceless", *arguments)
    assert done.returncode == 3
    assert "/dev/sample0 is absent" in done.stderr
    done = opsocket_command(installed, "deviceless", *arguments, "--assume", "v9")
    assert done.returncode == 0
    assert "assumed v9" in done.stdout


def test_auto_says_on_stderr_what_it_took(installed, opsocket_command):
    done = opsocket_command(installed, "emulator,deviceless", "explain", "--request", ADD, "--json")
    assert json.loads(done.stdout)["device"] == "large:0"
    assert done.stderr.startswith("opsocket: auto took large:0 (large chip); passed over")


def test_the_traceback_of_a_plugin_is_shown_with_debug(installed, opsocket_command):
    arguments = ("explain", "--backend", "exits", "--request", ADD)
    done = opsocket_command(installed, "exits", *arguments)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert "sys.exit(7)" in opsocket_command(installed, "exits", "--debug", *arguments).stderr
