"""`opsocket generate` and `opsocket bench` as a person runs them."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner

from opsocket.cli.main import cli

EXECUTABLE = os.path.join(sys.prefix, "bin", "opsocket")
FAST = ["--model", "smollm2", "--backend", "cpu", "--threads", "1"]


def opsocket(*arguments: str, stdin: str | None = None):
    return CliRunner().invoke(cli, list(arguments), input=stdin)


def run_process(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([EXECUTABLE, *arguments], capture_output=True, text=True, timeout=120, **options)


@pytest.mark.parametrize("command", ["generate", "bench"])
def test_commands_are_light_before_they_run(command):
    code = (
        f"import sys, opsocket_engine.cli.{command}; "
        "print([m for m in ('torch', 'numpy', 'tokenizers', 'jinja2', 'transformers') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize("arguments", [[], ["--model", "smollm2", "hello"]])
def test_a_backend_that_is_not_here_is_told_at_once(arguments):
    """At once: before a framework that takes seconds to import, the model, and even the prompt."""
    result = run_process("generate", "--backend", "tpu", *arguments, env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"})
    assert result.returncode == 3
    message = [line for line in result.stderr.splitlines() if not line.startswith("import time:")]
    assert "backend 'tpu': not discovered: no installed plugin provides it" in message[0]
    assert "hint: " in message[1]
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if "|" in line}
    assert "opsocket.cli.main" in imported
    assert not {"torch", "tokenizers", "opsocket_engine.engine"} & imported
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--model", "no-such-model", "hi"], "model"),
        ([*FAST, "--max-tokens", "0", "hi"], "max_tokens"),
        ([*FAST, "--temperature", "-1", "hi"], "temperature"),
        ([*FAST, "--kv-format", "i3", "hi"], "i3"),
        ([*FAST, "--dtype", "f64", "hi"], "dtype"),
        ([*FAST, "--no-chat", "--system", "Be brief.", "hi"], "--system"),
        ([*FAST, "--max-tokens", "4", "--no-chat", ""], "prompt"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_names_what_is_wrong(arguments, named):
    result = opsocket("generate", *arguments)
    assert result.exit_code == 2, result.output
    assert named in result.stderr


@pytest.mark.model
def test_a_chat_streams_to_stdout_and_numbers_go_to_stderr():
    one_by_one = ["--replay-steps", "1"]  # how many are fast enough to run together, and reserve slots, varies
    result = opsocket("generate", *FAST, *one_by_one, "What is the capital of France?", "--max-tokens", "16")
    assert result.exit_code == 0, result.output
    assert result.stdout == "The capital of France is Paris.\n"
    assert "tokens" in result.stderr
    assert "cache: f32, peak 3 of" in result.stderr


@pytest.mark.model
def test_loading_is_shown_on_a_terminal_and_gone_in_the_end():
    terminal, stderr = pty.openpty()
    arguments = [EXECUTABLE, "generate", *FAST, "--max-tokens", "2", "--no-chat", "1, 2, 3,"]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80"}
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=stderr, env=environment) as running:
        os.close(stderr)
        shown = b""
        with contextlib.suppress(OSError):  # as a terminal ends whose other side is closed
            while piece := os.read(terminal, 4096):
                shown += piece
        stdout, _ = running.communicate()
    os.close(terminal)
    assert running.returncode == 0
    assert stdout.decode().strip() == "4"
    assert b"loading smollm2" in shown
    assert b"MB" in shown
    assert b"loading smollm2" not in shown.rpartition(b"\x1b[2K")[2]


@pytest.mark.model
def test_json_is_one_object_with_everything(tmp_path):
    (tmp_path / "prompt").write_text("The capital of France is\n")
    result = opsocket(
        "generate",
        *FAST,
        "--no-chat",
        "--max-tokens",
        "3",
        "--json",
        "--prompt-file",
        str(tmp_path / "prompt"),
        "1, 2, 3,",
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [(r["prompt"], r["sample"], r["finish_reason"]) for r in report["results"]] == [
        (0, 0, "length"),
        (1, 0, "length"),
    ]
    assert report["results"][0]["text"].startswith(" 4")
    assert report["results"][1]["text"].startswith(" Paris")
    assert [len(r["token_ids"]) for r in report["results"]] == [3, 3]
    assert report["results"][1]["prompt_tokens"] == 5
    stats = report["stats"]
    assert stats["decode_tokens"] == 4
    assert stats["used_blocks"] == 0
    assert stats["token_bytes"] == 2 * 30 * 3 * 64 * 4
    assert {row["tier"] for row in report["placement"]} <= {"native", "composed"}
    assert {"attention", "matmul", "embedding", "cache_write", "rope"} <= {row["op"] for row in report["placement"]}
    assert report["interrupted"] is False


@pytest.mark.model
def test_placement_names_operator_provider_tier_and_reason():
    result = opsocket("generate", *FAST, "--no-chat", "--placement", "--max-tokens", "1", stdin="Hello")
    assert result.exit_code == 0, result.output
    lines = result.stderr.splitlines()
    (attention,) = (line.split() for line in lines if line.startswith("attention"))
    assert attention[1] in ("native", "torch")
    assert attention[2] == "native"
    (norm,) = (line for line in lines if line.startswith("rms_norm"))
    assert norm.split()[1:3] in (["native", "native"], ["composed", "composed"])
    assert norm.endswith("asked first") == (norm.split()[1] == "native")


@pytest.mark.model
def test_an_interrupt_ends_with_what_there_is():
    command = [EXECUTABLE, "generate", *FAST, "--ignore-eos", "--max-tokens", "2000"]
    process = subprocess.Popen([*command, "Tell a story."], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.read(5), "text comes while it is made"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "decode" in errors
    assert "Traceback" not in errors


@pytest.mark.model
def test_bench_prints_medians_beside_the_limit():
    arguments = [
        "--prompt-tokens",
        "8",
        "--contexts",
        "0,40",
        "--batch",
        "1,2",
        "--decode-tokens",
        "2",
        "--repeats",
        "2",
    ]
    result = opsocket("bench", *FAST, *arguments, "--activations", "none", "--kv-format", "bf16", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["stored_weight_bytes"] == pytest.approx(96.4e6, rel=1e-3)
    assert (report["activations"], report["kv_format"], report["captured"]) == ("none", "bf16", True)
    assert [(row["tokens"], row["batch"]) for row in report["prompts"]] == [(8, 1), (8, 2)]
    assert [(row["start"], row["batch"]) for row in report["decodes"]] == [(0, 1), (0, 2), (40, 1), (40, 2)]
    spreads = [row["tokens_per_second"] for row in report["prompts"]]
    for row in report["decodes"]:
        spreads += [row[name] for name in ("tokens_per_second", "read_bytes_per_second", "share_of_limit")]
        keys = row["batch"] * (max(row["start"], 1) + 1.5) * 2 * 30 * 3 * 64 * 2
        assert row["bytes_per_step"] == pytest.approx(report["stored_weight_bytes"] + keys)
    assert all(0 < spread["low"] <= spread["median"] <= spread["high"] for spread in spreads)


def test_explain_asks_for_a_model_as_it_would_be_run():
    """Which kernels an absent GPU would take depends on what the numbers are and on what kernels may do inside."""
    asked = ["explain", "--backend", "cuda", "--assume", "sm_90", "--model", "smollm2", "--json"]
    plain = json.loads(opsocket(*asked).stdout)["requests"]
    fast = json.loads(
        opsocket(*asked, "--dtype", "bf16", "--numerics", "fast", "--kv-format", "i8", "--activations", "i8_g32").stdout
    )["requests"]
    assert len(plain) == len(fast)
    (old,), (new,) = (
        {json.dumps(p["request"]["spec"]["numerics"]) for p in found if p["request"]["op"] == "attention"}
        for found in (plain, fast)
    )
    assert json.loads(old)["exp"] == "exact"
    assert json.loads(new) == json.loads(old) | {
        "exp": "approx", "tanh": "approx", "accumulate": "f32_truncating", "probabilities": "bf16",
        "dequantized": "bf16", "sinks": "bf16", "scales": "bf16",
    }  # fmt: skip
    caches = {p["request"]["cache"]["k"]["code"] for p in fast if p["request"]["op"] == "attention"}
    assert caches == {"i8"}
    formats = {p["request"]["spec"]["weight_format"] for p in fast if p["request"]["op"] == "matmul"}
    assert formats == {"q4_1_a8g32", "q8_0_a8g32"}
    result = opsocket(*asked, "--numerics", "quick")
    assert result.exit_code == 2
    assert "wanted 'exact' or 'fast', got 'quick'" in result.stderr
