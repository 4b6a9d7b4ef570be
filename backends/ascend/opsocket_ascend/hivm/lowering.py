"""One kernel from Triton's source to optimised HIVM, in an environment of its own: triton-ascend, ascendnpu-ir, NumPy.

    PYTHON lowering.py FOLDER ...    # folders that end the module path: where the kernels are, and what they import

A line of JSON each way: a launch's specialization and the chip; what became of it. Two programs of the vendor do the
work, `triton-adapter-opt` and `bishengir-compile`. The latter plans on-chip memory, and hands what it has to `hivmc`,
which comes with CANN alone: without it the module that it would have been handed is what is read here.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, Final

_LIMIT_S: Final = 120.0
"""That a compiler may take for one kernel; some of them do not end."""
_MODULE: Final = "module.hivm.opt.mlir"
_NO_HIVMC: Final = (
    "Cannot find hivmc under $PATH",
    "Failed to run `hivmc --version`",
    "External hivmc run fails, returning module before running external compiler",
    "Failed to run BiShengIR pipeline",
    "Failed to run BiShengHIR pipeline",
)
"""What `bishengir-compile` says where all but the last stage went well, and that one is not there, or says in general
before it says what failed: the module is not written then."""


class LoweringError(Exception):
    """stage: who refused the kernel."""

    def __init__(self, stage: str, said: str) -> None:
        super().__init__(f"{stage}: {said}")


def lower(specialization: dict[str, Any], chip: str) -> dict[str, Any]:
    """Facts of a launch as HIVM for a chip. `LoweringError` where a compiler refuses it."""
    from opsocket_ascend.hivm.module import facts

    _stand_in_for_newer_triton()
    module, _, name = specialization["kernel"].partition(":")
    function = getattr(importlib.import_module(module), name)
    linalg, core = _linalg(function, specialization, chip)
    text, said = _compile(linalg, chip)
    return facts(text, core, "linalg.matmul" in linalg or "linalg.batch_matmul" in linalg, said)


def _stand_in_for_newer_triton() -> None:
    """triton-ascend 3.2 has the language of Triton 3.2. What modules of kernels for 3.9 import of later ones is here by
    name, so that they can be imported; a kernel that calls it is refused by that language."""
    import triton

    if not hasattr(triton, "constexpr_function"):
        triton.constexpr_function = lambda function: function


def _linalg(function: Any, specialization: dict[str, Any], chip: str) -> tuple[str, str]:
    """The kernel in the dialect that `bishengir-compile` takes, and the kind of core that it is for."""
    from triton._C.libtriton import ir
    from triton.backends.ascend import compiler as vendor
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import ASTSource, make_backend

    target = GPUTarget("npu", chip, 0)
    backend = make_backend(target)
    options = backend.parse_options({"num_warps": specialization["warps"], "num_stages": specialization["stages"]})
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    signature, constants = map(dict, (specialization["signature"], specialization["constants"]))
    try:
        source = ASTSource(function, signature, constants)
        made = source.make_ir(options, backend.get_codegen_implementation(), backend.get_module_map(), context)
    except Exception as error:
        raise LoweringError("triton", _told(error)) from None
    metadata = {"target": target, "hash": "", **vars(options)}
    try:
        made = vendor.make_ttir(made, metadata, options)
        linalg = vendor.ttir_to_linalg(made, metadata, options, named_ops=True)
    except subprocess.CalledProcessError as error:
        raise LoweringError("triton-adapter-opt", _errors(error.stderr.decode(errors="replace"))) from None
    except Exception as error:
        raise LoweringError("triton", _told(error)) from None
    linalg, metadata = vendor._parse_linalg_metadata(linalg, metadata)
    return linalg, metadata["mix_mode"]


def _compile(linalg: str, chip: str) -> tuple[str, str]:
    """The optimised module, and what was said on the way."""
    package = importlib.import_module("ascendnpuir").__file__
    assert package is not None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = folder / "kernel.mlir"
        given.write_text(linalg)
        command = [
            str(Path(package).with_name("bin") / "bishengir-compile"),
            str(given),
            f"--target={chip}",
            "--enable-hfusion-compile=true",
            "--enable-hivm-compile=true",
            "--enable-triton-kernel-compile=true",
            "--enable-auto-multi-buffer=true",
            f"--save-temps={folder / 'made'}",
            "-o",
            str(folder / "kernel"),
        ]
        try:
            ran = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise LoweringError("bishengir-compile", f"longer than {_LIMIT_S:g} s") from None
        said = ran.stdout + ran.stderr
        wrong = [line for line in _error_lines(said) if not any(known in line for known in _NO_HIVMC)]
        module = folder / "made" / _MODULE
        if wrong or ran.returncode < 0 or not module.is_file():
            told = "; ".join(dict.fromkeys(wrong)) or f"no {_MODULE}, exit code {ran.returncode}"
            raise LoweringError("bishengir-compile", told)
        return module.read_text(), said


def _error_lines(said: str) -> list[str]:
    """Errors without the places in files that no one has."""
    found = [line for line in said.splitlines() if "error" in line.lower()]
    return [(line.partition("error: ")[2] or line.strip()).partition(" (possible reason")[0] for line in found]


def _errors(said: str) -> str:
    asserted = ["Assertion " + line.partition("Assertion ")[2] for line in said.splitlines() if "Assertion `" in line]
    lines = _error_lines(said) or asserted or said.strip().splitlines()[:1]
    return "; ".join(dict.fromkeys(lines))[:600]


def _told(error: BaseException) -> str:
    """Of Triton's own errors, which quote the kernel down to a place, what is wrong."""
    lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    specialization, started = request["specialization"], time.perf_counter()
    answer: dict[str, Any] = {"specialization": specialization, "facts": {}, "problems": []}
    try:
        answer["facts"] = lower(specialization, request["chip"])
    except LoweringError as error:
        answer["problems"] = [str(error)]
    except Exception as error:
        answer["problems"] = [f"lowering: {type(error).__name__}: {error}"]
    return {**answer, "seconds": round(time.perf_counter() - started, 3)}


def main() -> None:
    """Answer until the requests end. What compilers print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    # This file's own folder is not a place to import from, and the folders given come last: this environment has a
    # triton and a numpy of its own.
    sys.path[:] = [*sys.path[1:], *(folder for folder in sys.argv[1:] if folder not in sys.path)]
    for line in sys.stdin:
        answers.write(json.dumps(_answer(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
