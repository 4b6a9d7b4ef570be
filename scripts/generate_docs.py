"""Writes the generated blocks of README.md and docs/ anew, or checks them: `generate_docs.py [--check]`; or puts what
takes minutes to measure into its page: a self-test's matrix into docs/kill-matrix.md, `--kill-matrix FILE`; the same of
interpreted GPUs into docs/kill-matrix-gpu.md, fault by fault, `--kills-interpreted FILE...`; what compiled GPU kernels
hold, from the reports of `opsocket verify`, into docs/gpu-kernels.md, `--kernels FILE...`.

A block lies between `<!-- generated: NAME -->` and `<!-- end: NAME -->`. What it says comes from the code: the support
matrix asks every backend's `supports` the same requests that conformance asks, so it can't promise anything else.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from opsocket.operators import (
    AddSpec,
    ArgmaxSpec,
    AttentionSpec,
    Backend,
    CacheCopyBlocksSpec,
    CacheMoveSpec,
    CacheReadSpec,
    CacheSpec,
    CacheWriteSpec,
    DeviceInfo,
    EmbeddingSpec,
    GroupedMatmulSpec,
    KVFormat,
    MatmulSpec,
    MergeStatesSpec,
    MoECombineSpec,
    MoERouteSpec,
    MoESortSpec,
    QuantizeActivationSpec,
    Request,
    RMSNormSpec,
    RopeSpec,
    SampleSpec,
    SiluMulSpec,
    Spec,
    TakeRowsSpec,
)
from opsocket.plugins.load import plugins
from opsocket.quantization import FORMATS

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))
KILL_MATRIX = ROOT / "docs" / "kill-matrix.md"
KILLS_INTERPRETED = ROOT / "docs" / "kill-matrix-gpu.md"
INTERPRETED = ("sm_90", "gfx942")
GPU_KERNELS = ROOT / "docs" / "gpu-kernels.md"
_RUNS = ("2026-11-29", "2026-11-29-emerald-rapids")
"""Folders of benchmarks/results, one for each machine: the README shows the first, docs/ all."""
WHOLE_MODEL = tuple((f"{run}/whole_model.json", f"{run}/whole_model-long.json") for run in _RUNS)
"""Results of whole_model.py of one machine, for the README."""
REACHED = tuple(
    (f"{run}/operators-attention.json", f"{run}/operators-matmul.json") for run in (*_RUNS, "2026-11-30-zen3")
)
"""Results of operators.py, one group for each machine; the last counts where several measured the same."""
K_QUANTS = f"{_RUNS[1]}/k-quants"
"""Folder of both benchmarks' results over K-quants."""
EXPERTS = f"{_RUNS[1]}/experts/operators.json"
"""Results of operators.py over weights of 16 bits and products of experts."""
EXPERTS_MODEL = f"{_RUNS[1]}/experts/whole_model.json"
"""Results of whole_model.py over a file of experts."""
BF16_MODEL = f"{_RUNS[1]}/bf16/whole_model.json"
TILES = "2026-12-01-amx"
"""Results of whole_model.py over a file of bf16 weights."""
DTYPES = ("f32", "bf16", "f16")
KV_FORMATS = (
    KVFormat("f32"),
    KVFormat("bf16"),
    KVFormat("f16"),
    KVFormat("f8e4m3fn"),
    KVFormat("f8e5m2"),
    KVFormat("i8", "token_head"),
    KVFormat("i8", "channel"),
    KVFormat("i4", "token_head"),
    KVFormat("i2", "token_head"),
)


def cache(k: KVFormat) -> CacheSpec:
    return CacheSpec(num_blocks=8, block_size=16, num_kv_heads=2, head_dim_k=64, head_dim_v=64, k=k, v=k)


def attention(dtype: str = "f32", **knobs: object) -> AttentionSpec:
    return replace(
        AttentionSpec(6, 2, 64, 64, 0.125, q_dtype=dtype, kv_dtype=dtype, out_dtype=dtype),
        **knobs,  # type: ignore[arg-type]
    )


@dataclass(frozen=True)
class Row:
    """name: of the row. variants: what is asked for, by its label: one request, or one for each dtype of activations.
    shown: whether the row says its labels, which else stand above the table."""

    name: str
    variants: Mapping[str, Mapping[str, Request]]
    shown: bool = True


def rows() -> Iterable[Row]:
    paged = cache(KVFormat("f32"))
    yield _by_dtype("attention, paged cache", lambda d: Request(attention(d), paged))
    yield _by_dtype("attention, contiguous K and V", lambda d: Request(attention(d)))
    knobs: dict[str, dict[str, object]] = {
        "causal": {},
        "full": {"mask": "full"},
        "tree": {"mask": "tree"},
        "window": {"window_left": 7},
        "softcap": {"softcap": 30.0},
        "ALiBi": {"alibi": True},
        "sinks": {"sinks": True},
        "LSE": {"want_lse": True},
    }
    yield Row("attention", {n: {d: Request(attention(d, **k), paged) for d in DTYPES} for n, k in knobs.items()})
    yield _by_kv_format("attention", lambda d, f: Request(attention(d), cache(f)))
    yield _by_dtype("merge_states", lambda d: Request(MergeStatesSpec(6, 64, d, d)))
    yield _by_kv_format("cache_write", lambda d, f: Request(CacheWriteSpec(d), cache(f)))
    yield _by_kv_format("cache_read", lambda d, f: Request(CacheReadSpec(d), cache(f)))
    yield _by_kv_format("cache_move", lambda d, f: Request(CacheMoveSpec(), cache(f)))
    yield _by_kv_format("cache_copy_blocks", lambda d, f: Request(CacheCopyBlocksSpec(), cache(f)))
    weights: dict[str, Callable[[str, str], Spec]] = {
        "matmul": lambda f, d: MatmulSpec(f, 256, 512, x_dtype=d, out_dtype=d),
        "grouped_matmul": lambda f, d: GroupedMatmulSpec(4, f, 256, 512, x_dtype=d, out_dtype=d),
        "embedding": lambda f, d: EmbeddingSpec(f, 256, 512, out_dtype=d),
    }
    for op, of in weights.items():
        for name, formats in weight_formats().items():
            asked = {_group(f): {d: Request(of(f, d)) for d in DTYPES} for f in formats}
            yield Row(f"{op}, {name}", asked, shown=False)
    for make in (
        lambda d: QuantizeActivationSpec(512, x_dtype=d),
        lambda d: RMSNormSpec(512, 1e-5, d),
        lambda d: RopeSpec(6, 64, 64, 1e4, dtype=d),
        lambda d: SiluMulSpec(512, d),
        lambda d: AddSpec(512, d),
        lambda d: TakeRowsSpec(512, d),
        lambda d: MoERouteSpec(8, 2, dtype=d),
        lambda d: MoECombineSpec(512, 2, d),
        lambda d: ArgmaxSpec(512, d),
        lambda d: SampleSpec(512, d),
    ):
        yield _by_dtype(make("f32").op, lambda d, make=make: Request(make(d)))
    yield Row("moe_sort", {"i64": {"i64": Request(MoESortSpec(8, 2))}})


def weight_formats() -> dict[str, tuple[str, ...]]:
    """Of the formats that differ in the size of a group alone, one: any multiple of 16 is one, 64 stands for them."""
    ids = [f.id for f in FORMATS if f.block_k in (0, 64) or "_g" not in f.id]
    coded = tuple(id for id in ids if re.search(r"_a8(g\d+)?$", id))
    return {"weights": tuple(id for id in ids if id not in coded), "weights and int8 activations": coded}


def _group(id: str) -> str:
    return id.replace("_g64", "_gN")


def _by_dtype(name: str, of: Callable[[str], Request]) -> Row:
    return Row(name, {d: {d: of(d)} for d in DTYPES})


def _by_kv_format(name: str, of: Callable[[str, KVFormat], Request]) -> Row:
    return Row(f"{name}, KV", {_kv(f): {d: of(d, f) for d in DTYPES} for f in KV_FORMATS}, shown=False)


def _kv(f: KVFormat) -> str:
    return f.code if f.granularity == "none" else f"{f.code}/{f.granularity}"


def support_matrix() -> str:
    """What the formats are; then a row for each operator, a column for each backend: what it serves, and by whom."""
    # Only this repository's own: a plugin that happens to be installed here is not ours to document.
    ours = [plugin for plugin in plugins() if plugin.distribution == "opsocket"]
    backends = [status.backend for plugin in ours for status in plugin.backends if status.backend is not None]
    lines = [f"- KV: {', '.join(map(_kv, KV_FORMATS))}"]
    lines += [f"- {name}: {', '.join(map(_group, ids))}" for name, ids in weight_formats().items()]
    lines += ["", "| operator | " + " | ".join(b.info.name for b in backends) + " |"]
    lines.append("| --- " * (len(backends) + 1) + "|")
    for row in rows():
        name = f"{row.name}: {', '.join(row.variants)}" if row.shown else row.name
        lines.append(f"| {name} | " + " | ".join(_cell(backend, row) for backend in backends) + " |")
    return "\n".join(lines)


def _cell(backend: Backend, row: Row) -> str:
    # A generic device: the table says what the code serves, not what the machine that wrote it has.
    device = DeviceInfo(backend.info.name, 0, "generic", "generic", 1 << 40)
    served: dict[str, list[str]] = {}
    refused = []
    for label, requests in row.variants.items():
        found = {dtype: backend.supports(device, request) for dtype, request in requests.items()}
        yes = {dtype: support.provider for dtype, support in found.items() if support}
        if not yes:
            refused.append(label)
            continue
        by = ", ".join(sorted(set(yes.values())))
        served.setdefault(by, []).append(label if len(yes) == len(found) else f"{label} of {' and '.join(yes)}")
    return _told(served, refused)


def _told(served: dict[str, list[str]], refused: list[str]) -> str:
    """The longest list is not written out: it is "all", or the others."""
    if not served:
        return "none"
    longest = max(served, key=lambda by: len(served[by]))
    others = {by: labels for by, labels in served.items() if by != longest}
    if len(served[longest]) <= max(3, len(refused)) and (others or refused):
        others, longest = served, ""
    parts = [f"{', '.join(labels)} ({by})" for by, labels in others.items()]
    if longest:
        parts.append(f"{'the others' if others else 'all'} ({longest})")
    if refused:
        parts.append(f"not {', '.join(refused)}" if longest or not parts else "no other")
    return "; ".join(parts)


def kills_interpreted(reports: Iterable[Path] = ()) -> str:
    """What interpreted devices show of each fault: as the reports of self-tests say, elsewhere as the page has it."""
    from opsocket_conformance.power.catalogue import all_faults
    from opsocket_conformance.power.devices import NOT_ASKED, beside, cell, read_cells

    cells = read_cells(KILLS_INTERPRETED.read_text())
    for path in reports:
        report = json.loads(path.read_text())
        if report["device"]["numerics"] != "interpreted" or report["device"]["arch"] not in INTERPRETED:
            raise SystemExit(f"{path}: wanted an interpreted device of {INTERPRETED}, got {report['device']}")
        for outcome in report["power"]:
            if (found := cell(outcome)) != NOT_ASKED:
                cells.setdefault(outcome["fault"], {})[report["device"]["arch"]] = found
    return beside(all_faults(), cells, INTERPRETED)


def goals() -> str:
    """What the CPU's operators reached in the runs whose results are kept, a table for each machine."""
    from measurements import load
    from reached import table

    found = []
    for paths in REACHED:
        measured = load([ROOT / "benchmarks" / "results" / path for path in paths])
        found.append(f"{measured.machine}:\n\n{table(measured)}")
    return "\n\n".join(found)


def _whole_model(paths: tuple[str, ...]) -> str:
    """Tokens per second of whole models beside their peers, as a machine's runs that are kept have them."""
    from whole_model import kept

    machine, _, table = kept([ROOT / "benchmarks" / "results" / path for path in paths]).partition("\n\n")
    return f"{machine}:\n\n{table}"


def whole_model() -> str:
    return _whole_model(WHOLE_MODEL[0])


def whole_model_elsewhere() -> str:
    return "\n\n".join(map(_whole_model, WHOLE_MODEL[1:]))


def _products(path: str) -> str:
    """Products beside the fastest other system's."""
    from measurements import LIMITS, compared, load

    lines = ["| product | us | reached | beside it |", "| --- | ---: | ---: | --- |"]
    for row in compared(load([ROOT / "benchmarks" / "results" / path]).operators):
        beside = f"{row.times:.1f}x {row.best.system}" if row.best else ""
        reached = f"{100 * row.reached:.0f} % of {LIMITS.get(row.ours.limit, row.ours.limit)}"
        lines.append(f"| {row.ours.label} | {1e6 * row.ours.median:.0f} | {reached} | {beside} |")
    return "\n".join(lines)


def k_quants() -> str:
    """Products with K-quants, then a whole model."""
    return _products(f"{K_QUANTS}/operators.json") + "\n\n" + _whole_model((f"{K_QUANTS}/whole_model.json",))


def experts() -> str:
    return _products(EXPERTS)


def experts_model() -> str:
    return _whole_model((EXPERTS_MODEL,))


def tiles_model() -> str:
    return _whole_model((f"{TILES}/whole-model.json",))


def tiles_products() -> str:
    return _products(f"{TILES}/operators.json")


def bf16_model() -> str:
    return _whole_model((BF16_MODEL,))


BLOCKS: dict[str, Callable[[], str]] = {
    "bf16-model": bf16_model,
    "experts": experts,
    "experts-model": experts_model,
    "goals": goals,
    "k-quants": k_quants,
    "support-matrix": support_matrix,
    "tiles-model": tiles_model,
    "tiles-products": tiles_products,
    "kills-interpreted": kills_interpreted,
    "whole-model": whole_model,
    "whole-model-elsewhere": whole_model_elsewhere,
}


def render(text: str) -> str:
    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        return f"<!-- generated: {name} -->\n{BLOCKS[name]()}\n<!-- end: {name} -->"

    return re.sub(r"<!-- generated: (?P<name>[\w-]+) -->.*?<!-- end: (?P=name) -->", fill, text, flags=re.DOTALL)


def unlisted_faults() -> list[str]:
    """Faults of the catalogue that docs/kill-matrix.md does not name. Its figures are measured, not made here."""
    from opsocket_conformance.power.catalogue import all_faults

    told = KILL_MATRIX.read_text().replace("\\|", "|")
    return [fault.name for fault in all_faults() if f"| {fault.name} |" not in told]


def put_measured(page: Path, name: str, text: str) -> None:
    block = f"<!-- measured: {name} -->\n\n{text}\n<!-- end: {name} -->"
    pattern = rf"<!-- measured: {name} -->.*<!-- end: {name} -->"
    page.write_text(re.sub(pattern, lambda _: block, page.read_text(), flags=re.DOTALL))


def kernels_table(source: Path) -> str:
    """What the artifacts of a report of `opsocket verify` show: kernels by architectures."""
    content = json.loads(source.read_text())["ladder"]
    arches = content["architectures"]
    groups: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for entry in content["artifacts"]:
        groups.setdefault(entry["kernel"].partition(":")[2], {}).setdefault(entry["arch"], []).append(entry["facts"])
    lines = ["| kernel | " + " | ".join(arches) + " |", "| --- " * (len(arches) + 1) + "|"]
    for kernel, by_arch in sorted(groups.items()):
        cells = [_held(by_arch.get(arch, [])) for arch in arches]
        lines.append(f"| `{kernel}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _held(facts: list[dict[str, Any]]) -> str:
    """Registers, KiB of on-chip memory, per cent of occupancy."""
    if not facts:
        return ""
    columns = (("registers", 1.0), ("shared bytes", 1 / 1024), ("occupancy", 100.0))
    return ", ".join(_range([facts_of[name] * unit for facts_of in facts]) for name, unit in columns)


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low}-{high}"


def main(check: bool) -> int:
    stale = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text()
        fresh = render(text)
        if fresh != text:
            stale.append(path.relative_to(ROOT))
            if not check:
                path.write_text(fresh)
    if check and (missing := unlisted_faults()):
        print(f"docs/kill-matrix.md lacks faults, run `make kill-matrix`: {', '.join(missing)}", file=sys.stderr)
        return 1
    if check and stale:
        print(f"out of date, run `make docs`: {', '.join(map(str, stale))}", file=sys.stderr)
        return 1
    print(f"{'checked' if check else 'wrote'} generated blocks: {len(stale)} changed")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--kill-matrix"]:
        put_measured(KILL_MATRIX, "kill-matrix", Path(sys.argv[2]).read_text())
    if sys.argv[1:2] == ["--kills-interpreted"]:
        files = list(map(Path, sys.argv[2:]))
        BLOCKS["kills-interpreted"] = lambda: kills_interpreted(files)
    if sys.argv[1:2] == ["--kernels"]:
        put_measured(GPU_KERNELS, "kernels", "\n".join(kernels_table(Path(name)) for name in sys.argv[2:]))
    sys.exit(main(check="--check" in sys.argv[1:]))
