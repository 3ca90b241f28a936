"""Expectations that NNCF publishes in its own tests, as cases of ours.

Taken from NNCF's tests/openvino/native/quantization/test_weights_compression.py
(Apache-2.0): what it expects of a model is stated there as element types of
constants or as counts. The models are rebuilt here from their description. A
case is compared with NNCF like any other, and besides checked against the
expectation itself.
"""

from __future__ import annotations

import pathlib
from dataclasses import dataclass

import numpy as np
import openvino as ov
from openvino import opset13 as op

from options import Options as O


@dataclass(frozen=True)
class Entry:
    model: str
    path: pathlib.Path
    options: O
    types: tuple[tuple[str, str], ...] = ()  # constant -> element type
    counts: tuple[tuple[str, int], ...] = ()  # element type -> constants that have it


def _axis(value: int, name: str):
    return op.constant(np.int64(value), name=name)


def integer_model(dim2: int = 7, dim3: int = 6, positive: bool = True) -> ov.Model:
    rng = np.random.default_rng(0)

    def values(shape):
        data = rng.random(shape)
        return (data if positive else data * 2 - 1).astype(np.float32)

    x = op.parameter([1, dim2, 1], np.float32, name="Input")
    ids = op.convert(x, ov.Type.i64, name="Convert_1")
    ids = op.gather(ids, _axis(0, "i0"), _axis(0, "a0"), name="Gather_1")
    y = op.gather(op.constant(values((3, dim3)), name="gather_2_data"), ids, _axis(0, "a1"), name="Gather_2")
    y = op.gather(y, _axis(2, "i2"), _axis(0, "a2"), name="Gather_3")
    y = op.matmul(y, op.constant(values((dim3, dim3)), name="matmul_1_data"), False, True, name="MatMul_1")
    z = op.gather(x, _axis(0, "i3"), _axis(2, "a3"), name="Gather_4")
    z = op.matmul(z, op.constant(values((dim3, dim2)), name="matmul_2_data"), False, True, name="MatMul_2")
    return ov.Model([op.result(op.add(y, z, name="Add_1"), name="Result")], [x], "integer_model")


def sequential_matmul(hidden: int = 4) -> ov.Model:
    x = op.parameter([1, 4, hidden], np.float32, name="Input_1")
    y = x
    for i, corner in enumerate((10000, 1000, 1, 10, 10000)):
        data = np.arange(hidden**2, dtype=np.float32).reshape(hidden, hidden)
        data[-1, -1] = corner
        y = op.matmul(y, op.constant(data, name=f"weights_{i}"), False, True, name=f"MatMul_{i}")
    return ov.Model([op.result(y, name="Result")], [x], "sequential_matmul")


def weights_model() -> ov.Model:
    rng = np.random.default_rng(0)

    def const(shape, name):
        return op.constant(rng.random(shape).astype(np.float32), name=name)

    x = op.parameter([1, 3, 5, 5], np.float32, name="Input_1")
    y = op.convolution(x, const((3, 3, 1, 1), "conv_weights_0"), [1, 1], [0, 0], [0, 0], [1, 1], name="Conv")
    shape = op.constant(np.array([1, 1], np.int64), name="output_shape")
    y = op.convolution_backprop_data(y, const((3, 3, 1, 1), "conv_weights_1"), [1, 1], shape, [0, 0], [0, 0], [1, 1], name="Conv_backprop")
    w1, w0 = const((1, 4), "weights_1"), const((1, 1), "weights_0")
    first = op.matmul(y, w1, False, False, name="MatMul_1")
    second = op.matmul(w0, first, False, False, name="MatMul_0")
    both = op.matmul(second, first, False, True, name="MatMul")
    constants = op.matmul(w1, w0, True, False, name="MatMul_const")
    return ov.Model([op.result(op.add(constants, both, name="Add"), name="Result")], [x], "weights_model")


def gather_two_reduction_axes() -> ov.Model:
    rng = np.random.default_rng(0)
    x = op.parameter([2, 3], np.float32, name="Input")
    ids = op.convert(x, ov.Type.i64, name="Convert_1")
    y = op.gather(op.constant(rng.random((2, 2, 2)).astype(np.float32), name="gather_1_data"), ids, _axis(0, "a0"), name="Gather_1")
    return ov.Model([op.result(y, name="Result")], [x], "gather_two_reduction_axes")


def gather_and_matmul_share() -> ov.Model:
    rng = np.random.default_rng(0)
    x = op.parameter([2, 3], np.float32, name="Input")
    ids = op.convert(x, ov.Type.i64, name="Convert_1")
    shared = op.constant(rng.random((2, 2)).astype(np.float32), name="shared_data")
    g1 = op.gather(shared, ids, _axis(0, "a0"), name="Gather_1")
    g2 = op.gather(op.constant(rng.random((2, 1)).astype(np.float32), name="gather_2_data"), ids, _axis(0, "a1"), name="Gather_2")
    y = op.matmul(x, op.constant(rng.random((2, 3)).astype(np.float32), name="matmul_1_data"), False, True, name="MatMul_1")
    y = op.matmul(y, shared, False, True, name="MatMul_2")
    return ov.Model([op.result(n, name=f"Result_{i}") for i, n in enumerate((y, g2, g1))], [x], "gather_and_matmul_share")


def awq_matmul() -> ov.Model:
    x = op.parameter([-1, -1, 8], np.float32, name="Input_1")

    def linear(y, i):
        data = (0.01 * np.arange(64).reshape(8, 8) + 0.05).astype(np.float32)
        return op.matmul(y, op.constant(data, name=f"weights_{i}"), False, True, name=f"MatMul_{i}")

    y = op.multiply(linear(x, 1), linear(x, 2), name="Multiply")
    y = linear(y, 3)
    y = op.multiply(linear(y, 4), linear(y, 5), name="Multiply_2")
    return ov.Model([op.result(linear(y, 6), name="Result")], [x], "awq_matmul")


def named_constants() -> ov.Model:
    rng = np.random.default_rng(0)
    x = op.parameter([1, 2], np.float32, name="Parameter")
    y = op.add(x, op.constant(rng.random((1, 2)).astype(np.float32), name="Constant_16"), name="Add_1")
    y = op.matmul(y, op.constant(rng.random((1, 2)).astype(np.float32), name="Constant_1"), False, True, name="MatMul_1")
    return ov.Model([op.result(y, name="Result")], [x], "named_constants")


def matmul_16() -> ov.Model:
    x = op.parameter([1, 1, 16], np.float32, name="Input")
    data = np.arange(256, dtype=np.float32).reshape(16, 16)
    y = op.matmul(x, op.constant(data, name="Weights"), False, True, name="MatMul")
    return ov.Model([op.result(y, name="Result")], [x], "matmul_16")


def entries(directory: pathlib.Path) -> list[Entry]:
    out: list[Entry] = []

    def save(model: ov.Model, name: str) -> pathlib.Path:
        path = directory / f"published_{name}.xml"
        if not path.exists():
            ov.save_model(model, path, compress_to_fp16=False)
        return path

    def add(name, model, options, types=(), counts=()):
        types = types.items() if isinstance(types, dict) else types
        counts = counts.items() if isinstance(counts, dict) else counts
        out.append(Entry(name, save(model, name), options, tuple(types), tuple(counts)))

    # One MatMul takes the primary mode; Gather and the last MatMul the backup.
    data = ("gather_2_data", "matmul_1_data", "matmul_2_data")
    for mode, kind in (("int8_asym", "u8"), ("int8_sym", "i8")):
        add("integer_signed", integer_model(7, 6, False), O(mode, group_size=-1), {name: kind for name in data})
    for mode, kind, size, dim3, backup in (
        ("int4_sym", "i4", 3, 6, "u8"),
        ("int4_asym", "u4", 3, 6, "u8"),
        ("nf4", "nf4", 3, 6, "u8"),
        ("mxfp4", "f4e2m1", 32, 32, "f8e4m3"),
        ("mxfp8_e4m3", "f8e4m3", 32, 32, "f8e4m3"),
        ("fp8_e4m3", "f8e4m3", 3, 6, "f8e4m3"),
        ("fp4", "f4e2m1", 3, 6, "f8e4m3"),
        ("nvfp4", "f4e2m1", 16, 16, "u8"),
    ):
        types = {"matmul_2_data": kind, "gather_2_data": backup, "matmul_1_data": backup}
        add(f"integer_{size}_{dim3}", integer_model(size, dim3, False), O(mode, group_size=size), types)
    add("integer_3_6", integer_model(3, 6, False), O("cb4", group_size=3), {"matmul_2_data_nncf_codebook_idxs": "u4", "matmul_2_data": "f8e4m3"})
    for table, kind, index in (("u8_16", "u8", "u4"), ("f16_16", "f16", "u4"), ("i8_128", "i8", "u8"), ("f8e4m3_12_json", "f8e4m3", "u4")):
        types = {"matmul_2_data": kind, "matmul_2_data_nncf_codebook_idxs": index}
        add("integer_3_6", integer_model(3, 6, False), O("codebook", codebook=table, group_size=3), types)
    add("integer", integer_model(), O("int4_sym", ratio=0.5, group_size=1, all_layers=True), {"gather_2_data": "u8", "gather_2_data/zero_point": "u8"})
    add("integer_signed", integer_model(7, 6, False), O("int4_sym", ratio=1.0, group_size=1, all_layers=True), {"gather_2_data": "i4"})
    # Counts of u8 among the three weights; zero points are u8 too, hence doubled.
    for scope, count in (
        ({}, 3),
        ({"types": ("Gather",)}, 2),
        ({"names": ("matmul_1_data",)}, 2),
        ({"names": ("MatMul_1",)}, 2),
        ({"patterns": (".*data",)}, 0),
        ({"patterns": ("Mat.*",)}, 1),
    ):
        add("integer_signed", integer_model(7, 6, False), O(**scope), counts={"u8": 2 * count})
    # Convolutions.
    for mode, kind in (("int8_asym", "u8"), ("int8_sym", "i8")):
        add("weights", weights_model(), O(mode), {"conv_weights_0": kind, "conv_weights_1": kind})
    for all_layers in (False, True):
        types = {"conv_weights_0": "u8", "conv_weights_1": "u8", "weights_1": "i4", "weights_0": "i4" if all_layers else "u8"}
        add("weights", weights_model(), O("int4_sym", ratio=1.0, group_size=1, all_layers=all_layers), types)
    # Embeddings with two reduction axes, and shared ones.
    for mode, kind in (("int8_asym", "u8"), ("int8_sym", "i8")):
        add("gather_two_axes", gather_two_reduction_axes(), O(mode), {"gather_1_data": kind})
    for mode in ("int4_sym", "int4_asym"):
        for all_layers in (False, True):
            add("gather_two_axes", gather_two_reduction_axes(), O(mode, all_layers=all_layers), {"gather_1_data": "u8"})
        types = {"gather_2_data": "u8", "shared_data": "u8", "matmul_1_data": "i4" if mode == "int4_sym" else "u4"}
        add("gather_share", gather_and_matmul_share(), O(mode, group_size=3), types)
    for all_layers in (False, True):
        kind = "u4" if all_layers else "u8"
        types = {"gather_2_data": kind, "shared_data": kind, "matmul_1_data": "u4"}
        add("gather_share", gather_and_matmul_share(), O("int4_asym", group_size=-1, all_layers=all_layers), types)
    # Mixed precision: which of the five weights are primary.
    for hidden, modes, backup, picks in (
        (32, (("mxfp8_e4m3", "f8e4m3"), ("mxfp4", "f4e2m1")), "int8_asym", {1: 4, 0.8: (0, 1, 2), 0.4: (1,), 0.2: ()}),
        (128, (("fp8_e4m3", "f8e4m3"), ("fp4", "f4e2m1"), ("nvfp4", "f4e2m1")), "int8_sym", {1: 4, 0.8: (0, 1, 2), 0.4: (0,), 0.2: ()}),
    ):
        for mode, kind in modes:
            for ratio, chosen in picks.items():
                for all_layers in (False, True):
                    ids = chosen if isinstance(chosen, tuple) else range(5 if all_layers else 4)
                    other = "u8" if backup == "int8_asym" else "i8"
                    types = {f"weights_{i}": kind if i in ids else other for i in range(5)}
                    options = O(mode, ratio=float(ratio), all_layers=all_layers, metric="weight_quantization_error", backup=backup)
                    add(f"sequential_{hidden}", sequential_matmul(hidden), options, types)
    for all_layers in (False, True):
        for ratio, count in ((1.0, 5 if all_layers else 4), (0.8, 3), (0.4, 1), (0.2, 0)):
            options = O("cb4", ratio=ratio, group_size=1, all_layers=all_layers, metric="weight_quantization_error")
            add("sequential_4", sequential_matmul(4), options, counts={"f8e4m3": count})
    for table, kind in (("i8_16", "i8"), ("i8_128", "i8"), ("f8e4m3_12_json", "f8e4m3")):
        for size in (1, -1):
            options = O("codebook", ratio=1.0, group_size=size, all_layers=True, codebook=table)
            add("sequential_4", sequential_matmul(4), options, counts={kind: 5})
    # Backup modes.
    for backup, kind in (("none", "f32"), ("int8_asym", "u8"), ("int8_sym", "i8")):
        counts = {"nf4": 3, kind: 6 if kind == "u8" else 3}
        add("awq_matmul", awq_matmul(), O("nf4", ratio=0.7, group_size=-1, backup=backup), counts=counts)
    for mode, kind, scale in (("fp4", "f4e2m1", "f16"), ("mxfp4", "f4e2m1", "f8e8m0")):
        for backup in ("none", "fp8_e4m3" if mode == "fp4" else "mxfp8_e4m3", None):
            other = {"f32": 2} if backup == "none" else {"f8e4m3": 2}
            counts = {kind: 3, scale: 3 if backup == "none" else 5, **other}
            add("sequential_32", sequential_matmul(32), O(mode, ratio=0.8, group_size=32, backup=backup), counts=counts)
    add("named_constants", named_constants(), O())
    add("matmul_16", matmul_16(), O("nvfp4", ratio=1.0, all_layers=True), {"Weights": "f4e2m1"})
    for name in ("bad_equal", "bad_order", "bad_2d", "bad_one"):
        add("sequential_4", sequential_matmul(4), O("codebook", group_size=-1, codebook=name))
    return out
