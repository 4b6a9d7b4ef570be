"""Which tensors of a Hugging Face folder make up one matrix, by config.json's quantization_config.

GPTQ as AutoGPTQ and GPTQModel write it, AWQ in AutoAWQ's gemm packing, compressed-tensors' int-quantized 8-bit weights
with one scale per row, and 8-bit floats: compressed-tensors' float-quantized, and `fp8` with blocks, as DeepSeek-V3 has
them, or one scale per tensor, as AutoFP8 writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from opsocket.operators.errors import ContractError, FormatError
from opsocket.quantization import QuantFormat, WeightTensor, bf16_to_f32, get_format
from opsocket.quantization.safetensors_file import SafetensorsFile
from opsocket_engine.keys import Keys

MAX_GROUP = 1 << 20


@dataclass(frozen=True)
class StoredMatrix:
    """One matrix [n, k] of the file. parts: name in the format -> name in the file."""

    format: QuantFormat
    n: int
    k: int
    parts: Mapping[str, str]

    def check(self, source: SafetensorsFile, names: frozenset[str]) -> None:
        """FormatError where a part is missing or has another type or shape than the format wants."""
        try:
            specs = self.format.tensor_specs(self.n, self.k)
        except ContractError as error:
            where = next(iter(self.parts.values()))
            raise FormatError(source.path, where, f"{error.argument}: wanted {error.want}, got {error.got}") from None
        for part, (dtype, shape) in specs.items():
            name = self.parts[part]
            if name not in names:
                raise FormatError(source.path, name, f"no such tensor; wanted {dtype}{list(shape)}")
            got = source.shape(name)
            shapes = (shape, (*shape, 1), ()) if shape == (1,) else (shape, (*shape, 1))
            if not (source.dtype(name) == dtype or _widens(source, name, dtype)) or got not in shapes:
                problem = f"wanted {dtype}{list(shape)}, got {source.dtype(name)}{list(got)}"
                raise FormatError(source.path, name, problem)

    def read(self, source: SafetensorsFile) -> WeightTensor:
        """The matrix, its parts views of the file where nothing has to be widened."""
        tensors = {}
        for part, (dtype, shape) in self.format.tensor_specs(self.n, self.k).items():
            name = self.parts[part]
            array = floats(source, name) if _widens(source, name, dtype) else source.array(name)
            tensors[part] = array.reshape(shape)
        return WeightTensor(self.format, self.n, self.k, tensors)


def floats(source: SafetensorsFile, name: str) -> np.ndarray:
    """A tensor of f32, f16 or bf16 as f32."""
    array = source.array(name)
    return bf16_to_f32(array) if source.dtype(name) == "bf16" else array.astype(np.float32)


def _widens(source: SafetensorsFile, name: str, dtype: str) -> bool:
    return dtype == "f32" and source.dtype(name) in ("f16", "bf16")


@dataclass(frozen=True)
class Dense:
    """`{module}.weight`, f32, f16 or bf16: [n, k]."""

    def stored(self, source: SafetensorsFile, names: frozenset[str], module: str, n: int, k: int) -> StoredMatrix:
        """How the module is stored. FormatError where it has no dense weight."""
        name = f"{module}.weight"
        if name not in names:
            raise FormatError(source.path, name, f"no such tensor; wanted shape {[n, k]}")
        dtype = source.dtype(name)
        if dtype not in ("f32", "f16", "bf16"):
            raise FormatError(source.path, name, f"wanted f32, f16 or bf16, got {dtype}")
        return StoredMatrix(get_format(dtype), n, k, {"weight": name})


@dataclass(frozen=True)
class GPTQ:
    """`{module}.qweight`, `.qzeros`, `.scales` and, where columns are not in group order, `.g_idx`.

    version: 1 stores zero points less one, 2 stores them as they are. group_size 0: one group for the whole row.
    """

    version: int
    group_size: int
    act_order: bool

    def stored(
        self, source: SafetensorsFile, names: frozenset[str], module: str, n: int, k: int
    ) -> StoredMatrix | None:
        """How the module is stored; None where it is not quantized."""
        if f"{module}.qweight" not in names:
            return None
        group = self.group_size or k
        g_idx = f"{module}.g_idx"
        act_order = self.act_order
        if g_idx in names:
            # A column's group is what g_idx says, whatever the config says; most files carry a plain k // group.
            act_order = not np.array_equal(source.array(g_idx), np.arange(k) // group)
        parts = ("qweight", "qzeros", "scales") + (("g_idx",) if act_order else ())
        return _packed(source, f"gptq_v{self.version}_i4_g{group}{'_act' if act_order else ''}", n, k, module, parts)


@dataclass(frozen=True)
class AWQ:
    """`{module}.qweight`, `.qzeros`, `.scales`. group_size 0: one group for the whole row."""

    group_size: int

    def stored(
        self, source: SafetensorsFile, names: frozenset[str], module: str, n: int, k: int
    ) -> StoredMatrix | None:
        """How the module is stored; None where it is not quantized."""
        if f"{module}.qweight" not in names:
            return None
        return _packed(source, f"awq_i4_g{self.group_size or k}", n, k, module, ("qweight", "qzeros", "scales"))


@dataclass(frozen=True)
class Int8Channel:
    """`{module}.weight` i8[n, k] and `.weight_scale` [n, 1]; activations: quantized per token, or left as they are."""

    activations: bool

    def stored(
        self, source: SafetensorsFile, names: frozenset[str], module: str, n: int, k: int
    ) -> StoredMatrix | None:
        """How the module is stored; None where it is not quantized."""
        if f"{module}.weight_scale" not in names:
            return None
        format = get_format("i8_channel_a8" if self.activations else "i8_channel")
        return StoredMatrix(format, n, k, {"weight": f"{module}.weight", "scale": f"{module}.weight_scale"})


@dataclass(frozen=True)
class Float8:
    """`{module}.weight` f8e4m3fn[n, k] and its scales, `{module}.{scale}`.

    granularity: that of the format, tensor, channel or 128x128. Activations are left as they are, whatever the config
    says of theirs: more exact than what it asks for, and a static scale of theirs (`input_scale`) has no use then.
    """

    granularity: str
    scale: str = "weight_scale"

    def stored(
        self, source: SafetensorsFile, names: frozenset[str], module: str, n: int, k: int
    ) -> StoredMatrix | None:
        """How the module is stored; None where it is not quantized."""
        if f"{module}.{self.scale}" not in names:
            return None
        format = get_format(f"f8e4m3fn_{self.granularity}")
        return StoredMatrix(format, n, k, {"weight": f"{module}.weight", "scale": f"{module}.{self.scale}"})


Scheme = GPTQ | AWQ | Int8Channel | Float8


def read_scheme(keys: Keys) -> Scheme | None:
    """The scheme of config.json's quantized modules; None where nothing is quantized. FormatError names the key."""
    section = keys.section("quantization_config")
    if section is None:
        return None
    method = section.text("quant_method")
    if method == "gptq":
        section.only("bits", 4, "not built")
        section.only("dynamic", None, "settings that differ between modules")
        version = section.text("checkpoint_format", "gptq")
        if version not in ("gptq", "gptq_v2"):
            raise section.wrong("checkpoint_format", f"wanted gptq or gptq_v2, got {version!r}")
        return GPTQ(2 if version == "gptq_v2" else 1, _group_size(section), section.flag("desc_act", False))
    if method == "awq":
        section.only("bits", 4, "not built")
        section.only("zero_point", True, "not built")
        section.only("version", "gemm", "another packing")
        return AWQ(_group_size(section))
    if method == "compressed-tensors":
        return _compressed_tensors(section)
    if method == "fp8":
        return _fp8(section)
    raise section.wrong("quant_method", f"wanted gptq, awq, compressed-tensors or fp8, got {method!r}")


def _packed(source: SafetensorsFile, id: str, n: int, k: int, module: str, parts: tuple[str, ...]) -> StoredMatrix:
    try:
        format = get_format(id)
    except ContractError as error:
        problem = f"{error.argument}: wanted {error.want}, got {error.got}"
        raise FormatError(source.path, f"{module}.qweight", problem) from None
    return StoredMatrix(format, n, k, {part: f"{module}.{part}" for part in parts})


def _group_size(section: Keys) -> int:
    size = section.integer("group_size", -1, MAX_GROUP, 128)
    if size == 0:
        raise section.wrong("group_size", "wanted -1 for whole rows or a positive number, got 0")
    return max(size, 0)


def _fp8(section: Keys) -> Float8:
    section.only("fmt", "e4m3", "not built")
    scheme = section.text("activation_scheme", "dynamic")
    if scheme not in ("dynamic", "static"):
        raise section.wrong("activation_scheme", f"wanted dynamic or static, got {scheme!r}")
    if section.get("weight_block_size") is None:
        return Float8("tensor")
    section.only("weight_block_size", [128, 128], "not built")
    return Float8("128x128", "weight_scale_inv")


def _compressed_tensors(section: Keys) -> Int8Channel | Float8:
    kind = section.text("format", "int-quantized")
    if kind not in ("int-quantized", "float-quantized"):
        raise section.wrong("format", f"wanted int-quantized or float-quantized, got {kind!r}")
    section.only("kv_cache_scheme", None, "not built")
    groups = section.section("config_groups")
    names: Mapping[str, object] = section.get("config_groups") or {}
    if groups is None or len(names) != 1:
        raise section.wrong("config_groups", f"wanted one group, got {len(names)}")
    group = groups.section(next(iter(names)))
    weights = None if group is None else group.section("weights")
    if group is None or weights is None:
        raise section.wrong("config_groups", "wanted a group with weights")
    if kind == "float-quantized":
        return _compressed_floats(group, weights)
    for key, wanted in {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}.items():
        weights.only(key, wanted, "not built")
    activations = group.section("input_activations")
    if activations is None:
        return Int8Channel(activations=False)
    for key, wanted in {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}.items():
        activations.only(key, wanted, "not built")
    return Int8Channel(activations=True)


def _compressed_floats(group: Keys, weights: Keys) -> Float8:
    for values in (weights, group.section("input_activations")):
        for key, wanted in {"num_bits": 8, "type": "float", "symmetric": True}.items():
            if values is not None:
                values.only(key, wanted, "not built")
    strategy = weights.text("strategy")
    if strategy == "block":
        weights.only("block_structure", [128, 128], "not built")
        return Float8("128x128")
    if strategy not in ("tensor", "channel"):
        raise weights.wrong("strategy", f"wanted tensor, channel or block, got {strategy!r}")
    return Float8(strategy)
