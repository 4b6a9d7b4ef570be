"""benchmarks/reached.py: shares of limits beside goals."""

from __future__ import annotations

import json

import reached


def row(system: str, seconds: float, limit_rates: list[float], q_heads: int = 32) -> dict:
    facts = {
        "op": "attention", "cache": "i8", "context": 1024, "batch": 1, "q_len": 1, "q_heads": q_heads, "head_dim": 128,
        "dtype": "bf16",
    }  # fmt: skip
    case = {"kind": "decode", "label": f"{q_heads} heads", "limit": "read", "operations": 1e6, "facts": facts}
    return {"system": system, "case": case, "size": 30e6, "seconds": [seconds], "limit_rates": limit_rates}


def write(path, *rows: dict) -> str:
    path.write_text(json.dumps({"cpu": "A processor", "threads": 2, "rows": rows}))
    return str(path)


def test_share_of_the_median_limit_and_ratio_to_the_fastest_peer(tmp_path, capsys) -> None:
    rows = (
        row("opsocket", 1e-3, [50e9, 60e9]),
        row("slow", 4e-3, [70e9, 60e9]),
        row("fast", 2e-3, [60e9]),
        row("opsocket", 1e-3, [60e9], q_heads=9),
    )
    assert reached.main([write(tmp_path / "a.json", *rows)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == ["| decode: 32 heads | a raw read | 75 % | 50 % | 2.00x fast |"]


def test_nothing_with_a_goal_and_no_results_file(tmp_path, capsys) -> None:
    assert reached.main([write(tmp_path / "a.json", row("opsocket", 1e-3, [60e9], q_heads=9))]) == 1
    (tmp_path / "b.json").write_text("[]")
    assert reached.main([str(tmp_path / "b.json")]) == 2
    assert "b.json" in capsys.readouterr().err
