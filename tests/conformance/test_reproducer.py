"""The reproducer: a script of its own, which gives what the run gave."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

import opsocket
from opsocket_conformance.case import parse_case
from opsocket_conformance.checks import CHECKS
from opsocket_conformance.reproducer import reproducer
from opsocket_conformance.runner import run_case


@pytest.mark.parametrize(
    "id",
    [
        "attention[q=f32,batch=r1:37:3+5:20,kv=i8.channel,left=7,lse=1]#0",
        "attention_law[batch=chunk,law=split_merge]#0",
        "matmul[w=q4_K,x=outliers]#0",
        "rms_norm[t=7,dtype=f32]#3",
    ],
)
def test_a_script_of_twenty_lines_prints_the_ratio_of_the_run(tmp_path, id):
    case = parse_case(id, CHECKS)
    script = reproducer(case, "cpu", seed=5, pins={"attention": "torch"})
    assert len(script.splitlines()) <= 20
    path = tmp_path / "reproducer.py"
    path.write_text(script)
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=60, check=True)
    with opsocket.open("cpu", operators={"attention": "torch"}) as session:
        result = run_case(case, session, 5, 60.0)
    lines = done.stdout.splitlines()
    assert float(lines[-1].removeprefix("worst ratio: ")) == result.ratio
    ratios = [float(m[1]) for m in re.finditer(r"ratio ([\d.e+-]+)$", done.stdout, re.MULTILINE)]
    assert max(ratios) == pytest.approx(result.ratio, rel=1e-5)
    assert any(line.startswith(f"{result.operator} by ") for line in lines)
