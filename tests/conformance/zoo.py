"""Small models, each for one rule or surprise of NNCF's behaviour.

Every model is a function that returns an `openvino.Model`; its name is the
case's name. Weights come from a generator seeded by the model's name, so a
model does not change when others are added. Nodes and constants are named, so
that a difference is easy to find; reduction sizes are multiples of 32 unless
the model is about sizes, so that most group sizes apply.

Tags say which option sets make sense:
  core    every mode and group
  int     integer modes only (the model is about their numerics)
  awq     data-free AWQ finds something in it
  fp16    also saved with compress_to_fp16=True
"""

from __future__ import annotations

import pathlib
import zlib
from dataclasses import dataclass
from typing import Callable

import numpy as np
import openvino as ov
from openvino import opset13 as op
from openvino import opset17 as op17


@dataclass(frozen=True)
class ZooModel:
    name: str
    build: Callable[[], ov.Model]
    tags: frozenset[str]

    def save(self, directory: pathlib.Path, fp16: bool = False) -> pathlib.Path:
        path = directory / f"{self.name}{'-fp16' if fp16 else ''}.xml"
        if not path.exists():
            ov.save_model(self.build(), path, compress_to_fp16=fp16)
        return path


MODELS: dict[str, ZooModel] = {}


def zoo(*tags: str):
    def register(function: Callable[[], ov.Model]) -> Callable[[], ov.Model]:
        MODELS[function.__name__] = ZooModel(function.__name__, function, frozenset(tags or ("core",)))
        return function

    return register


# ---- building blocks --------------------------------------------------------
class Builder:
    """Names, random weights and the few shapes that most models share."""

    def __init__(self, name: str):
        self.name = name
        self.rng = np.random.default_rng(zlib.crc32(name.encode()))
        self._layer = 0

    def param(self, shape, name="x", dtype=np.float32):
        node = op.parameter(shape, dtype, name=name)
        node.output(0).set_names({name})
        return node

    def values(self, shape, scale=None) -> np.ndarray:
        # A different spread per weight keeps sensitivity scores well apart.
        self._layer += 1
        scale = scale if scale is not None else 0.02 * (1 + 0.37 * self._layer)
        return (self.rng.standard_normal(shape) * scale).astype(np.float32)

    def const(self, shape_or_values, name, dtype=ov.Type.f32):
        data = shape_or_values
        if not isinstance(data, np.ndarray):
            data = self.values(data)
        return typed_constant(data, name, dtype)

    def linear(self, x, inputs, outputs, name, bias=False, dtype=ov.Type.f32):
        weight = self.const([outputs, inputs], f"{name}.weight", dtype)
        if dtype != ov.Type.f32:
            weight = decompress(weight, f"{name}.weight/decompress")
        y = op.matmul(x, weight, False, True, name=name)
        if bias:
            y = op.add(y, self.const([1, outputs], f"{name}.bias"), name=f"{name}/add")
        return y

    def model(self, results, params, sinks=None) -> ov.Model:
        nodes = []
        for i, node in enumerate(results):
            result = op.result(node, name=f"result_{i}")
            nodes.append(result)
        if sinks:
            return ov.Model(nodes, sinks, params, self.name)
        return ov.Model(nodes, params, self.name)


def typed_constant(data: np.ndarray, name: str, dtype: ov.Type):
    if dtype == ov.Type.f32:
        return op.constant(data.astype(np.float32), name=name)
    if dtype == ov.Type.f64:
        return op.constant(data.astype(np.float64), name=name)
    if dtype == ov.Type.f16:
        return op.constant(data.astype(np.float16), name=name)
    if dtype == ov.Type.bf16:
        bits = np.ascontiguousarray(data, np.float32).view(np.uint32)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        return raw_constant(rounded.tobytes(), data.shape, name, dtype)
    # 8-bit floats: let OpenVINO convert a clamped copy.
    limit = 400.0 if dtype == ov.Type.f8e4m3 else 50000.0
    node = op.constant(np.clip(data * 16, -limit, limit).astype(np.float32), dtype=dtype)
    node.set_friendly_name(name)
    return node


def raw_constant(data: bytes, shape, name: str, dtype: ov.Type):
    """A constant of any element type from its bytes."""
    tensor = ov.Tensor(dtype, ov.Shape(list(shape)))
    flat = np.frombuffer(data, np.uint8)
    view = np.array(tensor.data, copy=False).reshape(-1).view(np.uint8)
    assert view.size == flat.size, (view.size, flat.size)
    view[:] = flat
    node = op.constant(tensor, shared_memory=False)
    node.set_friendly_name(name)
    return node


def decompress(node, name, dtype=ov.Type.f32):
    convert = op.convert(node, dtype, name=name)
    convert.get_rt_info()["decompression_0"] = ""
    return convert


# ---- MatMul: layouts, ranks, sizes ------------------------------------------
@zoo("core", "fp16")
def mlp():
    b = Builder("mlp")
    x = b.param([-1, 64])
    y = x
    for i in range(4):
        y = op.relu(b.linear(y, 64, 64, f"fc{i}", bias=True), name=f"relu{i}")
    return b.model([b.linear(y, 64, 32, "head")], [x])


@zoo("core", "fp16")
def mlp_large():
    """Weights on both sides of 10000 elements, where NNCF changes its code path."""
    b = Builder("mlp_large")
    x = b.param([2, 128])
    y = b.linear(x, 128, 96, "big0")  # 12288
    y = b.linear(y, 96, 128, "big1")
    y = b.linear(y, 128, 64, "small")  # 8192
    y = b.linear(y, 64, 160, "big2")
    return b.model([b.linear(y, 160, 128, "head")], [x])


@zoo("core")
def transposed_b():
    b = Builder("transposed_b")
    x = b.param([3, 64])
    y = op.matmul(x, b.const([64, 96], "w0"), False, False, name="mm0")
    y = op.matmul(y, b.const([96, 128], "w1"), False, False, name="mm1")
    y = op.matmul(y, b.const([128, 96], "w2"), False, False, name="mm2")
    return b.model([op.matmul(y, b.const([96, 32], "w3"), False, False, name="mm3")], [x])


@zoo("core")
def transposedactivation():
    b = Builder("transposed_activation")
    x = b.param([64, 3])
    y = op.matmul(x, b.const([96, 64], "w0"), True, True, name="mm0")  # [3,96]
    t = op.transpose(y, op.constant(np.array([1, 0], np.int64), name="order"), name="t")
    y = op.matmul(t, b.const([96, 32], "w1"), True, False, name="mm1")
    return b.model([op.matmul(y, b.const([32, 32], "w2"), False, False, name="mm2")], [x])


@zoo("core")
def weight_on_port0():
    b = Builder("weight_on_port0")
    x = b.param([64, 5])
    y = op.matmul(b.const([96, 64], "w0"), x, False, False, name="mm0")  # [96,5]
    y = op.matmul(b.const([96, 32], "w1"), y, True, False, name="mm1")  # [32,5]
    y = op.matmul(b.const([32, 32], "w2"), y, False, False, name="mm2")
    return b.model([op.matmul(b.const([64, 32], "w3"), y, False, False, name="mm3")], [x])


@zoo("core")
def weight_on_both_sides():
    """Constants of one shape, first on port 1, then on port 0."""
    b = Builder("weight_on_both_sides")
    x = b.param([64, 64])
    y = op.matmul(x, b.const([64, 64], "w0"), False, True, name="mm0")
    y = op.matmul(b.const([64, 64], "w1"), y, False, False, name="mm1")
    y = op.matmul(y, b.const([64, 64], "w2"), True, False, name="mm2")
    return b.model([op.matmul(b.const([64, 64], "w3"), y, True, True, name="mm3")], [x])


@zoo("core")
def one_dimensional_weight():
    b = Builder("one_dimensional_weight")
    x = b.param([4, 64])
    y = b.linear(x, 64, 64, "fc0")
    v = op.matmul(y, b.const([64], "vector"), False, False, name="mm_vector")  # [4]
    z = op.matmul(b.const([4], "vector_left"), y, False, False, name="mm_left")  # [64]
    return b.model([v, z, b.linear(y, 64, 32, "head")], [x])


@zoo("core")
def three_dimensional_weight():
    """Expert weights: a batch axis before the two of the product."""
    b = Builder("three_dimensional_weight")
    x = b.param([4, 3, 64])
    y = op.matmul(x, b.const([4, 96, 64], "w0"), False, True, name="mm0")
    y = op.matmul(y, b.const([4, 96, 64], "w1"), False, False, name="mm1")
    y = op.matmul(y, b.const([1, 64, 64], "w2"), False, True, name="mm2")
    return b.model([op.matmul(y, b.const([4, 32, 64], "w3"), False, True, name="mm3")], [x])


@zoo("core")
def four_dimensional_weight():
    b = Builder("four_dimensional_weight")
    x = b.param([2, 2, 3, 32])
    y = op.matmul(x, b.const([2, 2, 64, 32], "w0"), False, True, name="mm0")
    y = op.matmul(y, b.const([2, 2, 64, 32], "w1"), False, False, name="mm1")
    return b.model([op.matmul(y, b.const([32, 32], "w2"), False, True, name="mm2")], [x])


@zoo("core")
def grouped_matmul():
    b = Builder("grouped_matmul")
    x = b.param([2, 4, 64])
    y = op17.grouped_matmul(x, b.const([2, 96, 64], "experts0"), name="gmm0")
    y = op17.grouped_matmul(y, b.const([2, 64, 96], "experts1"), name="gmm1")
    return b.model([op.matmul(y, b.const([64, 64], "w"), False, True, name="mm")], [x])


@zoo("core")
def grouped_matmul_reshaped():
    """Two reduction axes on a weight that may be primary: a fallback cannot
    ask for its channel size."""
    b = Builder("grouped_matmul_reshaped")
    x = b.param([2, 4, 64])
    shape = op.constant(np.array([2, 64, 64], np.int64), name="shape")
    y = op17.grouped_matmul(x, op.reshape(b.const([2, 64, 2, 32], "experts"), shape, False, name="reshape"), name="gmm")
    y = op.matmul(y, b.const([64, 64], "w0"), False, True, name="mm0")
    return b.model([op.matmul(y, b.const([64, 64], "w1"), False, True, name="mm1")], [x])


@zoo("core")
def odd_sizes():
    """Sizes that no group size divides, odd counts of 4-bit elements."""
    b = Builder("odd_sizes")
    x = b.param([2, 7])
    y = b.linear(x, 7, 13, "fc0")
    y = b.linear(y, 13, 5, "fc1")
    y = b.linear(y, 5, 33, "fc2")
    y = b.linear(y, 33, 129, "fc3")
    return b.model([b.linear(y, 129, 3, "head")], [x])


@zoo("core")
def odd_sizes_large():
    b = Builder("odd_sizes_large")
    x = b.param([2, 101])
    y = b.linear(x, 101, 103, "fc0")  # 10403 elements
    y = b.linear(y, 103, 99, "fc1")  # 10197
    y = op.matmul(y, b.const([99, 105], "w2"), False, False, name="fc2")  # 10395
    return b.model([b.linear(y, 105, 7, "head")], [x])


@zoo("core")
def mixed_divisibility():
    """Reductions of 96, 80, 64, 40, 20: for the group size fallback."""
    b = Builder("mixed_divisibility")
    x = b.param([2, 96])
    y = b.linear(x, 96, 80, "fc96")
    y = b.linear(y, 80, 64, "fc80")
    y = b.linear(y, 64, 40, "fc64")
    y = b.linear(y, 40, 20, "fc40")
    y = b.linear(y, 20, 128, "fc20")
    return b.model([b.linear(y, 128, 16, "head")], [x])


@zoo("core")
def tiny_weights():
    b = Builder("tiny_weights")
    x = b.param([2, 1])
    y = b.linear(x, 1, 1, "fc0")
    y = b.linear(y, 1, 2, "fc1")
    y = b.linear(y, 2, 1, "fc2")
    return b.model([b.linear(y, 1, 1, "head")], [x])


@zoo("core")
def empty_weight():
    b = Builder("empty_weight")
    x = b.param([2, 32])
    y = op.matmul(x, op.constant(np.zeros([0, 32], np.float32), name="none"), False, True, name="mm_none")
    return b.model([op.concat([y, b.linear(x, 32, 32, "fc")], 1, name="cat")], [x])


@zoo("core")
def no_weights():
    b = Builder("no_weights")
    x, y = b.param([2, 4], "x"), b.param([2, 4], "y")
    return b.model([op.add(op.multiply(x, y, name="mul"), op.constant(np.float32(1.5), name="one"), name="add")], [x, y])


@zoo("core")
def matmul_of_activations():
    b = Builder("matmul_of_activations")
    x, y = b.param([2, 32], "x"), b.param([4, 32], "y")
    q = b.linear(x, 32, 64, "q")
    k = b.linear(y, 32, 64, "k")
    return b.model([op.matmul(q, k, False, True, name="qk")], [x, y])


@zoo("core")
def constant_subgraph():
    """A MatMul of two constants is no weighted node; its user may be."""
    b = Builder("constant_subgraph")
    x = b.param([2, 32])
    folded = op.matmul(b.const([32, 64], "a"), b.const([64, 32], "b"), False, False, name="folded")
    y = op.matmul(x, folded, False, False, name="mm0")
    return b.model([op.add(b.linear(y, 32, 32, "fc"), b.const([32], "c"), name="add")], [x])


# ---- element types -----------------------------------------------------------
def _typed(name, dtype, large):
    b = Builder(name)
    size = 128 if large else 64
    x = b.param([2, size])
    y = b.linear(x, size, size, "fc0", dtype=dtype)
    y = b.linear(y, size, size, "fc1", dtype=dtype)
    y = b.linear(y, size, size, "fc2", bias=True)
    return b.model([b.linear(y, size, 32, "head", dtype=dtype)], [x])


@zoo("core")
def f16_weights():
    return _typed("f16_weights", ov.Type.f16, False)


@zoo("core")
def f16_weights_large():
    return _typed("f16_weights_large", ov.Type.f16, True)


@zoo("core")
def bf16_weights():
    return _typed("bf16_weights", ov.Type.bf16, False)


@zoo("core")
def bf16_weights_large():
    return _typed("bf16_weights_large", ov.Type.bf16, True)


@zoo("core")
def f64_weights():
    return _typed("f64_weights", ov.Type.f64, False)


@zoo("core")
def f64_weights_large():
    return _typed("f64_weights_large", ov.Type.f64, True)


@zoo("core")
def f8e4m3_weights():
    return _typed("f8e4m3_weights", ov.Type.f8e4m3, False)


@zoo("core")
def f8e4m3_weights_large():
    return _typed("f8e4m3_weights_large", ov.Type.f8e4m3, True)


@zoo("core")
def f8e5m2_weights():
    return _typed("f8e5m2_weights", ov.Type.f8e5m2, False)


@zoo("core")
def f16_directly_used():
    """An f16 model: no Convert between constant and MatMul."""
    b = Builder("f16_directly_used")
    x = b.param([2, 64], dtype=np.float16)
    y = op.matmul(x, b.const([64, 64], "w0", ov.Type.f16), False, True, name="mm0")
    y = op.matmul(y, b.const([64, 128], "w1", ov.Type.f16), False, False, name="mm1")
    return b.model([op.matmul(y, b.const([32, 128], "w2", ov.Type.f16), False, True, name="mm2")], [x])


@zoo("core")
def bf16_directly_used():
    b = Builder("bf16_directly_used")
    x = op.convert(b.param([2, 64]), ov.Type.bf16, name="to_bf16")
    y = op.matmul(x, b.const([64, 64], "w0", ov.Type.bf16), False, True, name="mm0")
    y = op.matmul(y, b.const([64, 64], "w1", ov.Type.bf16), False, True, name="mm1")
    y = op.matmul(y, b.const([64, 64], "w2", ov.Type.bf16), False, True, name="mm2")
    return b.model([op.convert(y, ov.Type.f32, name="to_f32")], [x.input_value(0).get_node()])


@zoo("core")
def f64_model():
    b = Builder("f64_model")
    x = b.param([2, 32], dtype=np.float64)
    y = op.matmul(x, b.const([32, 32], "w0", ov.Type.f64), False, True, name="mm0")
    y = op.matmul(y, b.const([32, 32], "w1", ov.Type.f64), False, True, name="mm1")
    return b.model([op.matmul(y, b.const([32, 32], "w2", ov.Type.f64), False, True, name="mm2")], [x])


@zoo("core")
def convert_to_f16():
    """f32 constant, Convert to f16, f16 MatMul: the Convert goes."""
    b = Builder("convert_to_f16")
    x = b.param([2, 64], dtype=np.float16)
    y = op.matmul(x, op.convert(b.const([64, 64], "w0"), ov.Type.f16, name="w0/f16"), False, True, name="mm0")
    y = op.matmul(y, op.convert(b.const([64, 64], "w1"), ov.Type.f16, name="w1/f16"), False, True, name="mm1")
    return b.model([op.matmul(y, b.const([32, 64], "w2", ov.Type.f16), False, True, name="mm2")], [x])


@zoo("core")
def convert_with_other_users():
    """One constant read through a Convert by one user and directly by another."""
    b = Builder("convert_with_other_users")
    x = b.param([2, 64])
    h = op.convert(x, ov.Type.f16, name="x16")
    w = b.const([64, 64], "w", ov.Type.f16)
    y = op.matmul(x, decompress(w, "w/decompress"), False, True, name="mm_f32")
    z = op.matmul(h, w, False, True, name="mm_f16")
    w2 = b.const([64, 64], "w2")
    y = op.matmul(y, w2, False, True, name="mm2")
    z = op.matmul(z, op.convert(w2, ov.Type.f16, name="w2/f16"), False, True, name="mm2_f16")
    out = op.add(y, op.convert(z, ov.Type.f32, name="z32"), name="sum")
    return b.model([b.linear(out, 64, 32, "head")], [x])


@zoo("core")
def two_converts():
    b = Builder("two_converts")
    x = b.param([2, 64])
    w = b.const([64, 64], "w", ov.Type.f16)
    first = decompress(w, "w/a")
    second = decompress(w, "w/b")
    y = op.matmul(x, first, False, True, name="mm0")
    y = op.matmul(y, second, False, True, name="mm1")
    w3 = op.convert(op.convert(b.const([64, 64], "w3", ov.Type.f16), ov.Type.f32, name="c1"), ov.Type.f32, name="c2")
    y = op.matmul(y, w3, False, True, name="mm3")
    return b.model([b.linear(y, 64, 32, "head")], [x])


@zoo("core")
def integer_constants():
    """Integer constants behind a Convert are no weights."""
    b = Builder("integer_constants")
    x = b.param([2, 64])
    w = op.constant(b.rng.integers(-100, 100, [64, 64]).astype(np.int8), name="w_int")
    y = op.matmul(x, op.convert(w, ov.Type.f32, name="w_int/convert"), False, True, name="mm_int")
    return b.model([b.linear(b.linear(y, 64, 64, "fc"), 64, 32, "head")], [x])


# ---- what stands above a weight ----------------------------------------------
@zoo("core")
def reshape_above():
    """Quantized in the constant's own shape, whatever Reshape makes of it."""
    b = Builder("reshape_above")
    x = b.param([2, 64])

    def shape(values, name):
        return op.constant(np.array(values, np.int64), name=name)

    w0 = op.reshape(b.const([4096], "flat"), shape([64, 64], "s0"), False, name="r0")
    y = op.matmul(x, w0, False, True, name="mm0")
    w1 = op.reshape(b.const([8, 8, 64], "cube"), shape([64, 64], "s1"), False, name="r1")
    y = op.matmul(y, w1, False, True, name="mm1")
    w2 = op.reshape(decompress(b.const([32, 128], "half", ov.Type.f16), "half/convert"), shape([64, 64], "s2"), False, name="r2")
    y = op.matmul(y, w2, False, False, name="mm2")
    return b.model([b.linear(y, 64, 32, "head")], [x])


@zoo("core")
def fake_quantize_above():
    b = Builder("fake_quantize_above")
    x = b.param([2, 64])

    def limits(name):
        return [op.constant(np.float32(v), name=f"{name}/l{i}") for i, v in enumerate((-1, 1, -1, 1))]

    y = op.fake_quantize(x, *limits("fqx"), 256, name="fqx")
    y = op.matmul(y, op.fake_quantize(b.const([64, 64], "w0"), *limits("fq0"), 255, name="fq0"), False, True, name="mm0")
    y = op.fake_quantize(op.relu(y, name="relu"), *limits("fqy"), 256, name="fqy")
    y = op.matmul(y, op.fake_quantize(b.const([64, 64], "w1"), *limits("fq1"), 255, name="fq1"), False, False, name="mm1")
    return b.model([b.linear(y, 64, 32, "head")], [x])


@zoo("core")
def other_ops_above():
    """Transpose, Unsqueeze, Multiply, Add, Gather, Concat above: no weight."""
    b = Builder("other_ops_above")
    x = b.param([2, 64])
    order = op.constant(np.array([1, 0], np.int64), name="order")
    y = op.matmul(x, op.transpose(b.const([64, 64], "w_t"), order, name="t"), False, False, name="mm_t")
    y = op.matmul(y, op.multiply(b.const([64, 64], "w_m"), b.const([64, 1], "w_m/s"), name="m"), False, True, name="mm_m")
    axis = op.constant(np.int64(0), name="axis")
    y = op.matmul(y, op.squeeze(b.const([1, 64, 64], "w_s"), axis, name="s"), False, True, name="mm_s")
    y = op.matmul(y, op.concat([b.const([32, 64], "w_c0"), b.const([32, 64], "w_c1")], 0, name="c"), False, True, name="mm_c")
    y = b.linear(y, 64, 64, "fc")
    return b.model([b.linear(y, 64, 32, "head")], [x])


# ---- sharing, names -----------------------------------------------------------
@zoo("core", "fp16")
def tied_embedding():
    b = Builder("tied_embedding")
    ids = b.param([1, 5], "ids", np.int64)
    table = b.const([96, 64], "table")
    axis = op.constant(np.int64(0), name="axis")
    y = op.gather(table, ids, axis, name="embed")
    y = b.linear(y, 64, 64, "fc0")
    y = b.linear(y, 64, 64, "fc1")
    return b.model([op.matmul(y, table, False, True, name="lm_head")], [ids])


@zoo("core")
def tied_embedding_matmul_first():
    """The MatMul comes before the Gather in NNCF's order."""
    b = Builder("tied_embedding_matmul_first")
    x = b.param([1, 64], "a")
    ids = b.param([1, 5], "ids", np.int64)
    table = b.const([96, 64], "table")
    y = op.matmul(x, table, False, True, name="score")
    axis = op.constant(np.int64(0), name="axis")
    z = op.gather(table, ids, axis, name="embed")
    z = b.linear(z, 64, 96, "fc")
    return b.model([op.add(op.unsqueeze(y, axis, name="u"), z, name="sum")], [x, ids])


@zoo("core")
def shared_opposite_transpose():
    b = Builder("shared_opposite_transpose")
    x = b.param([2, 64])
    w = b.const([64, 96], "shared")
    y = op.matmul(x, w, False, False, name="mm0")
    y = op.matmul(y, w, False, True, name="mm1")
    return b.model([b.linear(y, 64, 64, "fc"), b.linear(y, 64, 32, "head")], [x])


@zoo("core")
def shared_opposite_transpose_reversed():
    b = Builder("shared_opposite_transpose_reversed")
    x = b.param([2, 96])
    w = b.const([64, 96], "shared")
    y = op.matmul(x, w, False, True, name="mm0")
    y = op.matmul(y, w, False, False, name="mm1")
    return b.model([b.linear(y, 96, 64, "fc")], [x])


@zoo("core")
def shared_with_other_ops():
    """The constant is also added, multiplied and a Result of its own."""
    b = Builder("shared_with_other_ops")
    x = b.param([64, 64])
    w = b.const([64, 64], "shared")
    y = op.matmul(x, w, False, True, name="mm0")
    y = op.add(y, w, name="add")
    y = op.multiply(w, y, name="mul")
    return b.model([b.linear(y, 64, 64, "fc"), w, b.linear(y, 64, 32, "head")], [x])


@zoo("core")
def shared_by_same_node():
    b = Builder("shared_by_same_node")
    x = b.param([64, 64])
    w = b.const([64, 64], "twice")
    y = op.matmul(x, w, False, True, name="mm0")
    both = op.matmul(w, w, False, True, name="both")
    return b.model([b.linear(op.add(y, both, name="add"), 64, 32, "head")], [x])


@zoo("core")
def equal_bytes():
    """Two constants with the same bytes: one place in the .bin."""
    b = Builder("equal_bytes")
    x = b.param([2, 64])
    data = b.values([64, 64])
    y = op.matmul(x, op.constant(data, name="w0"), False, True, name="mm0")
    y = op.matmul(y, op.constant(data.copy(), name="w1"), False, True, name="mm1")
    y = op.matmul(y, op.constant(data.copy(), name="w2"), False, False, name="mm2")
    return b.model([b.linear(y, 64, 32, "head")], [x])


@zoo("core")
def duplicate_names():
    b = Builder("duplicate_names")
    x = b.param([2, 64])
    y = op.relu(op.matmul(x, b.const([64, 64], "w"), False, True, name="fc"), name="act")
    y = op.relu(op.matmul(y, b.const([64, 64], "w"), False, True, name="fc"), name="act")
    y = op.matmul(y, b.const([64, 64], "w"), False, True, name="fc")
    return b.model([op.matmul(y, b.const([32, 64], "head"), False, True, name="head")], [x])


@zoo("core")
def duplicate_name_taken():
    """The name that NNCF would invent for a duplicate exists already."""
    b = Builder("duplicate_name_taken")
    x = b.param([2, 64])
    y = op.matmul(x, b.const([64, 64], "w"), False, True, name="fc")
    y = op.matmul(y, b.const([64, 64], "w0"), False, True, name="fc0")
    y = op.matmul(y, b.const([64, 64], "w"), False, True, name="fc")
    return b.model([op.matmul(y, b.const([32, 64], "w0"), False, True, name="head")], [x])


@zoo("core")
def names_like_generated():
    """Given names that look like OpenVINO's own, and characters XML escapes."""
    b = Builder("names_like_generated")
    x = b.param([2, 64])
    y = op.matmul(x, b.const([64, 64], "Constant_16"), False, True, name="MatMul_3")
    y = op.matmul(y, b.const([64, 64], "Convert_7"), False, True, name="Multiply_9")
    y = op.matmul(y, b.const([64, 64], 'a<b>&"c\'d/é 名'), False, True, name="node with spaces & <tags>")
    return b.model([op.matmul(y, b.const([32, 64], "Reshape_1"), False, True, name="Subtract_2")], [x])


@zoo("core")
def unprintable_names():
    """The rt_info of an ignored scope holds them as Python's repr() does."""
    b = Builder("unprintable_names")
    x = b.param([2, 64])
    y = b.linear(x, 64, 64, "zero\u200bwidth\ufeff")
    return b.model([b.linear(b.linear(y, 64, 64, "Ünï 日本"), 64, 64, "no-break\u00a0space\u2028")], [x])


@zoo("core")
def names_of_ours():
    """Names that a compressed weight would get are taken."""
    b = Builder("names_of_ours")
    x = b.param([2, 64])
    y = op.matmul(x, b.const([64, 64], "w"), False, True, name="w/fq_weights_1")
    y = op.add(y, b.const([64], "w/scale"), name="w/zero_point")
    return b.model([op.matmul(y, b.const([32, 64], "v"), False, True, name="w/zero_point/subtract")], [x])


@zoo("core")
def tensor_names():
    """Tensor names on constants and MatMuls; several on one output."""
    b = Builder("tensor_names")
    x = b.param([2, 64])
    w = b.const([64, 64], "w0")
    w.output(0).set_names({"weight_tensor"})
    y = op.matmul(x, w, False, True, name="mm0")
    y.output(0).set_names({"hidden", "hidden:0"})
    z = b.linear(y, 64, 32, "head")
    z.output(0).set_names({"logits"})
    return b.model([z, y], [x])


# ---- embeddings -----------------------------------------------------------------
def _embedding(name, shape, index_shape, dtype=ov.Type.f32, convert=False, axis=0, size=64):
    b = Builder(name)
    ids = b.param(index_shape, "ids", np.int32)
    table = b.const(shape, "table", dtype)
    if convert:
        table = decompress(table, "table/convert")
    y = op.gather(table, ids, op.constant(np.int64(axis), name="axis"), name="embed")
    if dtype == ov.Type.bf16 and not convert:
        y = op.convert(y, ov.Type.f32, name="embed/f32")
    y = b.linear(y, size, 64, "fc0")
    y = b.linear(y, 64, 64, "fc1")
    return b.model([b.linear(y, 64, 32, "head")], [ids])


@zoo("core", "fp16")
def embedding():
    return _embedding("embedding", [96, 64], [1, 4])


@zoo("core")
def embedding_large():
    return _embedding("embedding_large", [256, 64], [1, 4])


@zoo("core")
def embedding_f16():
    return _embedding("embedding_f16", [256, 64], [1, 4], ov.Type.f16, True)


@zoo("core")
def embedding_bf16_convert():
    return _embedding("embedding_bf16_convert", [96, 64], [1, 4], ov.Type.bf16, True)


@zoo("core")
def embedding_bf16_direct():
    return _embedding("embedding_bf16_direct", [96, 64], [1, 4], ov.Type.bf16, False)


@zoo("core")
def embedding_axis1():
    return _embedding("embedding_axis1", [3, 64], [64], axis=1)


@zoo("core")
def embedding_3d():
    return _embedding("embedding_3d", [8, 4, 64], [3])


@zoo("core")
def embedding_1d():
    b = Builder("embedding_1d")
    ids = b.param([1, 64], "ids", np.int32)
    y = op.gather(b.const([50], "table"), ids, op.constant(np.int64(0), name="axis"), name="embed")
    y = b.linear(y, 64, 64, "fc")
    return b.model([b.linear(y, 64, 32, "head")], [ids])


@zoo("int")
def embedding_1d_large():
    b = Builder("embedding_1d_large")
    ids = b.param([1, 64], "ids", np.int32)
    y = op.gather(b.const([10000], "table"), ids, op.constant(np.int64(0), name="axis"), name="embed")
    return b.model([b.linear(y, 64, 32, "head")], [ids])


@zoo("core")
def embedding_only():
    b = Builder("embedding_only")
    ids = b.param([1, 4], "ids", np.int32)
    return b.model([op.gather(b.const([96, 64], "table"), ids, op.constant(np.int64(0), name="axis"), name="embed")], [ids])


@zoo("core")
def gather_versions():
    from openvino import opset1, opset7

    b = Builder("gather_versions")
    ids = b.param([1, 4], "ids", np.int32)
    axis = op.constant(np.int64(0), name="axis")
    a = opset1.gather(b.const([64, 64], "table1"), ids, axis)
    a.set_friendly_name("gather1")
    c = opset7.gather(b.const([64, 64], "table7"), ids, axis)
    c.set_friendly_name("gather7")
    d = op.gather(b.const([64, 64], "table8"), ids, axis, name="gather8")
    y = op.add(op.add(a, c, name="ac"), d, name="acd")
    return b.model([b.linear(b.linear(y, 64, 64, "fc"), 64, 32, "head")], [ids])


@zoo("core")
def gather_ofactivation():
    """A Gather whose data is no constant, and one with constant indices."""
    b = Builder("gather_of_activation")
    x = b.param([8, 64])
    rows = op.constant(np.array([1, 3], np.int64), name="rows")
    axis = op.constant(np.int64(0), name="axis")
    y = b.linear(op.gather(x, rows, axis, name="pick"), 64, 64, "fc")
    shared = b.const([4, 64], "picked")
    z = op.gather(shared, op.constant(np.array([0, 2], np.int64), name="fixed"), axis, name="pick_const")
    return b.model([b.linear(op.add(y, z, name="add"), 64, 32, "head")], [x])


@zoo("core")
def other_lookups():
    """GatherElements and GatherND never hold weights."""
    b = Builder("other_lookups")
    ids = b.param([2, 64], "ids", np.int64)
    y = op.gather_elements(b.const([4, 64], "elements"), ids, 0, name="ge")
    return b.model([b.linear(b.linear(y, 64, 64, "fc"), 64, 32, "head")], [ids])


# ---- convolutions ------------------------------------------------------------------
ONES, ZEROS = [1, 1], [0, 0]


@zoo("core", "fp16")
def convolutions():
    b = Builder("convolutions")
    x = b.param([1, 3, 12, 12])
    y = op.convolution(x, b.const([32, 3, 3, 3], "conv.w"), ONES, ZEROS, ZEROS, ONES, name="conv")
    y = op.group_convolution(y, b.const([32, 1, 1, 3, 3], "depthwise.w"), ONES, [1, 1], [1, 1], ONES, name="depthwise")
    y = op.group_convolution(y, b.const([4, 16, 8, 1, 1], "group.w"), ONES, ZEROS, ZEROS, ONES, name="group")
    shape = op.constant(np.array([10, 10], np.int64), name="backprop.shape")
    y = op.convolution_backprop_data(y, b.const([64, 16, 3, 3], "backprop.w"), ONES, shape, [1, 1], [1, 1], ONES, name="backprop")
    return b.model([op.convolution(y, b.const([8, 16, 1, 1], "last.w"), ONES, ZEROS, ZEROS, ONES, name="last")], [x])


def _flat_convolution(name, shape):
    """The constant behind the Reshape has not the rank of a kernel."""
    b = Builder(name)
    x = b.param([1, 8, 4, 4])
    kernel = op.constant(np.array([8, 8, 3, 3], np.int64), name="kernel")
    w = op.reshape(b.const(shape, "w"), kernel, False, name="w/reshape")
    y = op.convolution(x, w, [1, 1], [1, 1], [1, 1], [1, 1], name="conv")
    return b.model([op.matmul(y, b.const([4, 4], "mm.w"), False, True, name="mm")], [x])


@zoo("core")
def convolution_of_vector():
    return _flat_convolution("convolution_of_vector", [576])


@zoo("core")
def convolution_of_matrix():
    return _flat_convolution("convolution_of_matrix", [8, 72])


@zoo("core")
def group_backprop():
    b = Builder("group_backprop")
    x = b.param([1, 16, 6, 6])
    y = op.group_convolution_backprop_data(x, b.const([4, 4, 8, 3, 3], "gb.w"), ONES, pads_begin=[1, 1], pads_end=[1, 1], dilations=ONES, name="gb")
    y = op.convolution_backprop_data(y, b.const([32, 16, 3, 3], "b.w"), ONES, pads_begin=[1, 1], pads_end=[1, 1], dilations=ONES, name="bp")
    return b.model([y], [x])


@zoo("core")
def convolution_1d_3d():
    b = Builder("convolution_1d_3d")
    x = b.param([1, 8, 20])
    y = op.convolution(x, b.const([16, 8, 5], "c1.w"), [1], [0], [0], [1], name="c1")
    z = b.param([1, 4, 5, 5, 5], "z")
    v = op.convolution(z, b.const([8, 4, 2, 2, 2], "c3.w"), [1, 1, 1], [0, 0, 0], [0, 0, 0], [1, 1, 1], name="c3")
    return b.model([y, v], [x, z])


@zoo("core")
def convolution_large():
    b = Builder("convolution_large")
    x = b.param([1, 64, 6, 6])
    y = op.convolution(x, b.const([64, 64, 3, 3], "c0.w"), ONES, [1, 1], [1, 1], ONES, name="c0")
    y = op.add(y, b.const([1, 64, 1, 1], "c0.b"), name="c0/add")
    y = op.group_convolution(op.relu(y, name="relu"), b.const([2, 96, 32, 3, 3], "g.w"), ONES, [1, 1], [1, 1], ONES, name="g")
    shape = op.constant(np.array([1, -1], np.int64), name="flat")
    y = op.reshape(op.reduce_mean(y, op.constant(np.array([2, 3], np.int64), name="axes"), True, name="pool"), shape, False, name="r")
    return b.model([b.linear(b.linear(y, 192, 64, "fc"), 64, 10, "head")], [x])


@zoo("core")
def convolution_last():
    """The last weighted node is a convolution; the last MatMul stays the last MatMul."""
    b = Builder("convolution_last")
    x = b.param([1, 4, 6, 64])
    y = b.linear(x, 64, 64, "fc0")
    y = b.linear(y, 64, 64, "fc1")
    y = b.linear(y, 64, 64, "fc2")
    return b.model([op.convolution(y, b.const([8, 4, 3, 3], "conv.w"), ONES, ZEROS, ZEROS, ONES, name="conv")], [x])


@zoo("core")
def deformable_convolution():
    b = Builder("deformable_convolution")
    x, offsets = b.param([1, 4, 6, 6]), b.param([1, 18, 4, 4], "offsets")
    y = op.deformable_convolution(x, offsets, b.const([8, 4, 3, 3], "w"), ONES, ZEROS, ZEROS, ONES, name="deform")
    return b.model([op.convolution(y, b.const([8, 8, 1, 1], "c.w"), ONES, ZEROS, ZEROS, ONES, name="conv")], [x, offsets])


# ---- order and the last layer --------------------------------------------------------
@zoo("core")
def parallel_qkv():
    b = Builder("parallel_qkv")
    x = b.param([2, 64])
    q, k, v = (b.linear(x, 64, 64, name) for name in ("q", "k", "v"))
    return b.model([op.add(op.add(q, k, name="qk"), v, name="qkv")], [x])


@zoo("core")
def parallel_results():
    b = Builder("parallel_results")
    x = b.param([2, 64])
    heads = [b.linear(x, 64, 32 + 32 * (i % 2), name) for i, name in enumerate(("zeta", "alpha", "mid"))]
    return b.model(heads, [x])


@zoo("core")
def two_parameters():
    b = Builder("two_parameters")
    x, y = b.param([2, 64], "late"), b.param([2, 64], "early")
    p, q = b.linear(x, 64, 64, "on_late"), b.linear(y, 64, 64, "on_early")
    z = op.concat([q, p], 1, name="cat")
    return b.model([b.linear(z, 128, 64, "join")], [x, y])


@zoo("core")
def equal_layers():
    """Exact ties: the stable order decides."""
    b = Builder("equal_layers")
    x = b.param([2, 64])
    data = b.values([64, 64])
    y = x
    for i in range(5):
        y = op.matmul(y, op.constant(data.copy(), name=f"w{i}"), False, True, name=f"mm{i}")
    return b.model([y], [x])


@zoo("core")
def single_matmul():
    b = Builder("single_matmul")
    x = b.param([2, 64])
    return b.model([b.linear(x, 64, 64, "only")], [x])


@zoo("core")
def unused_output():
    """A Parameter that nothing reads; a Split with an unread output."""
    b = Builder("unused_output")
    x, unused = b.param([2, 128]), b.param([1], "unused")
    axis = op.constant(np.int64(1), name="axis")
    parts = op.split(x, axis, 2, name="split")
    y = b.linear(parts.output(1), 64, 64, "fc")
    return b.model([b.linear(y, 64, 32, "head")], [x, unused])


# ---- states, bodies, sequences --------------------------------------------------------
@zoo("core")
def states():
    from openvino.op.util import Variable, VariableInfo

    b = Builder("states")
    x = b.param([1, 64])
    info = VariableInfo()
    info.data_shape, info.data_type, info.variable_id = ov.PartialShape([1, 64]), ov.Type.f32, "memory"
    variable = Variable(info)
    read = op.read_value(op.constant(np.zeros([1, 64], np.float32), name="initial"), variable, name="read")
    y = op.add(b.linear(x, 64, 64, "fc"), b.linear(read, 64, 64, "recurrent"), name="sum")
    assign = op.assign(y, variable, name="assign")
    return b.model([b.linear(y, 64, 32, "head")], [x], [assign])


@zoo("core")
def if_bodies():
    b = Builder("if_bodies")
    x, flag = b.param([2, 64]), b.param([], "flag", ov.Type.boolean)

    def body(name):
        p = op.parameter([2, 64], np.float32, name=f"{name}/in")
        y = op.matmul(p, b.const([64, 64], f"{name}/w"), False, True, name=f"{name}/mm")
        return ov.Model([op.result(y, name=f"{name}/out")], [p], name)

    then, other = body("then"), body("else")
    node = op.if_op(flag.output(0))
    node.set_then_body(then)
    node.set_else_body(other)
    node.set_input(b.linear(x, 64, 64, "before").output(0), then.get_parameters()[0], other.get_parameters()[0])
    y = node.set_output(then.get_results()[0], other.get_results()[0])
    node.set_friendly_name("branch")
    return b.model([op.matmul(y, b.const([32, 64], "after.weight"), False, True, name="after")], [x, flag])


@zoo("core")
def tensor_iterator_body():
    b = Builder("tensor_iterator_body")
    x = b.param([1, 4, 64])
    p = op.parameter([1, 1, 64], np.float32, name="slice")
    h = op.parameter([1, 64], np.float32, name="hidden")
    squeezed = op.squeeze(p, op.constant(np.int64(1), name="body/axis"), name="body/squeeze")
    step = op.add(op.matmul(squeezed, b.const([64, 64], "body/w"), False, True, name="body/mm"), h, name="body/add")
    body = ov.Model([op.result(step, name="body/out")], [p, h], "body")
    node = op.tensor_iterator()
    node.set_body(body)
    node.set_sliced_input(p, x.output(0), 0, 1, 1, -1, 1)
    node.set_merged_input(h, op.constant(np.zeros([1, 64], np.float32), name="h0").output(0), step.output(0))
    out = node.get_iter_value(step.output(0), -1)
    node.set_friendly_name("iterator")
    return b.model([op.matmul(out, b.const([32, 64], "after.weight"), False, True, name="after")], [x])


@zoo("core")
def loop_body():
    b = Builder("loop_body")
    x = b.param([1, 64])
    inner = op.parameter([1, 64], np.float32, name="body/in")
    again = op.constant(np.array(True), name="body/condition")
    step = op.relu(op.matmul(inner, b.const([64, 64], "body/w"), False, True, name="body/mm"), name="body/relu")
    body = ov.Model([again, step], [inner], "body")
    node = op.loop(op.constant(np.int64(3), name="trips"), op.constant(np.array(True), name="go"))
    node.set_function(body)
    node.set_special_body_ports([-1, 0])
    node.set_merged_input(inner, b.linear(x, 64, 64, "before").output(0), step.output(0))
    out = node.get_iter_value(step.output(0), -1)
    node.set_friendly_name("loop")
    return b.model([op.matmul(out, b.const([32, 64], "after.weight"), False, True, name="after")], [x])


@zoo("core")
def lstm_sequence():
    b = Builder("lstm_sequence")
    x = b.param([1, 5, 32])
    zero = np.zeros([1, 1, 32], np.float32)
    lengths = op.constant(np.array([5], np.int32), name="lengths")
    node = op.lstm_sequence(
        x,
        op.constant(zero, name="h0"),
        op.constant(zero.copy(), name="c0"),
        lengths,
        b.const([1, 128, 32], "lstm.W"),
        b.const([1, 128, 32], "lstm.R"),
        b.const([1, 128], "lstm.B"),
        32,
        "forward",
        name="lstm",
    )
    y = op.squeeze(node.output(1), op.constant(np.int64(1), name="axis"), name="last")
    return b.model([b.linear(b.linear(y, 32, 64, "fc"), 64, 32, "head")], [x])


@zoo("core")
def gru_sequence():
    b = Builder("gru_sequence")
    x = b.param([1, 5, 32])
    lengths = op.constant(np.array([5], np.int32), name="lengths")
    node = op.gru_sequence(
        x,
        op.constant(np.zeros([1, 1, 32], np.float32), name="h0"),
        lengths,
        b.const([1, 96, 32], "gru.W"),
        b.const([1, 96, 32], "gru.R"),
        b.const([1, 96], "gru.B"),
        32,
        "forward",
        name="gru",
    )
    y = op.squeeze(node.output(1), op.constant(np.int64(1), name="axis"), name="last")
    return b.model([b.linear(y, 32, 32, "head")], [x])


# ---- patterns that NNCF always ignores ---------------------------------------------------
def _rope(name, transpose, copies, direct=False):
    b = Builder(name)
    x = b.param([1, 1, 10])
    freqs = op.matmul(b.const([1, 32, 1], "inv_freq"), x, False, False, name="freqs")
    if transpose:
        freqs = op.transpose(freqs, op.constant(np.array([0, 2, 1], np.int64), name="order"), name="freqs_t")
    if not direct:
        freqs = op.concat([freqs] * copies, -1, name="emb")
    sin, cos = op.sin(freqs, name="sin"), op.cos(freqs, name="cos")
    y = b.linear(b.param([1, 64], "h"), 64, 64, "fc")
    params = [x, y.input_value(0).get_node()]
    return b.model([sin, cos, b.linear(y, 64, 32, "head")], params)


@zoo("core")
def rope():
    return _rope("rope", True, 2)


@zoo("core")
def rope_single():
    return _rope("rope_single", True, 1)


@zoo("core")
def rope_concat_only():
    return _rope("rope_concat_only", False, 2)


@zoo("core")
def rope_three_copies():
    return _rope("rope_three_copies", True, 3)


@zoo("core")
def rope_without_concat():
    return _rope("rope_without_concat", True, 0, direct=True)


@zoo("core")
def rope_direct():
    """MatMul straight into Sin and Cos is not the pattern."""
    return _rope("rope_direct", False, 0, direct=True)


@zoo("core")
def rope_last():
    """An ignored RoPE MatMul is the final weighted node."""
    b = Builder("rope_last")
    h = b.param([1, 64], "h")
    x = b.param([1, 1, 10], "x")
    y = b.linear(h, 64, 64, "fc0")
    y = b.linear(y, 64, 64, "fc1")
    f = op.matmul(b.const([1, 32, 1], "inv_freq"), x, False, False, name="freqs")
    f = op.transpose(f, op.constant(np.array([0, 2, 1], np.int64), name="order"), name="freqs_t")
    f = op.concat([f, f], -1, name="emb")
    return b.model([y, op.sin(f, name="sin"), op.cos(f, name="cos")], [h, x])


@zoo("core")
def rope_last_reversed():
    b = Builder("rope_last_reversed")
    x = b.param([1, 1, 10], "x")
    h = b.param([1, 64], "h")
    f = op.matmul(b.const([1, 32, 1], "inv_freq"), x, False, False, name="freqs")
    f = op.transpose(f, op.constant(np.array([0, 2, 1], np.int64), name="order"), name="freqs_t")
    f = op.concat([f, f], -1, name="emb")
    y = b.linear(h, 64, 64, "fc0")
    y = b.linear(y, 64, 64, "fc1")
    return b.model([op.sin(f, name="sin"), op.cos(f, name="cos"), y], [x, h])


@zoo("core")
def sam_positional():
    b = Builder("sam_positional")
    x = b.param([1, 4, 4, 2])
    y = op.matmul(x, b.const([2, 64], "gaussian"), False, False, name="mm")
    y = op.multiply(y, op.constant(np.float32(6.2831855), name="two_pi"), name="scaled")
    y = op.concat([op.sin(y, name="sin"), op.cos(y, name="cos")], -1, name="pe")
    return b.model([b.linear(b.linear(y, 128, 64, "fc"), 64, 32, "head")], [x])


# ---- numbers -------------------------------------------------------------------------
def _numbers(name: str, rows: list[np.ndarray], large: bool):
    """A square weight from rows of 64 (or 128), used in both layouts."""
    b = Builder(name)
    size = 128 if large else 64
    data = np.concatenate([np.resize(row, size)[None] for row in rows] * (size // len(rows) + 1))[:size].astype(np.float32)
    x = b.param([2, size])
    y = op.matmul(x, op.constant(data, name="w0"), False, True, name="mm0")
    y = op.matmul(y, op.constant(data * np.float32(1.5), name="w1"), False, False, name="mm1")
    y = op.matmul(y, op.constant(np.ascontiguousarray(data[::-1] * np.float32(0.75)), name="w2"), False, True, name="mm2")
    return b.model([op.matmul(y, b.const([32, size], "head.weight"), False, True, name="head")], [x])


def _rows_signs(rng) -> list[np.ndarray]:
    base = np.abs(rng.standard_normal(128))
    tie = rng.uniform(-0.9, 0.9, 128)
    tie[[5, 70]], tie[[9, 77]] = 1.0, -1.0
    zero = np.zeros(128)
    half = np.zeros(128)
    half[64:] = base[64:]
    negative_zero = np.full(128, -0.0)
    one = zero.copy()
    one[3] = -2.0
    return [base, -base, tie, -tie, zero, half, negative_zero, one, np.full(128, 0.3), np.full(128, -0.3)]


@zoo("core")
def signs_and_zeros():
    return _numbers("signs_and_zeros", _rows_signs(np.random.default_rng(5)), False)


@zoo("core")
def signs_and_zeros_large():
    return _numbers("signs_and_zeros_large", _rows_signs(np.random.default_rng(6)), True)


def _rows_rounding(rng) -> list[np.ndarray]:
    """Values on and next to the middle between two codes."""
    rows = []
    for levels, top in ((255, 255.0), (15, 15.0), (7, 7.0), (8, 8.0), (127, 127.0), (6, 6.0)):
        row = (rng.integers(0, levels * 2, 128) / 2.0).astype(np.float32)
        row[0] = top
        rows += [row, np.nextafter(row, np.float32(1e9), dtype=np.float32), np.nextafter(row, np.float32(-1e9), dtype=np.float32), -row, row - np.float32(top / 2)]
    return rows


@zoo("core")
def rounding_ties():
    return _numbers("rounding_ties", _rows_rounding(np.random.default_rng(7)), False)


@zoo("core")
def rounding_ties_large():
    return _numbers("rounding_ties_large", _rows_rounding(np.random.default_rng(8)), True)


def _rows_extreme(rng) -> list[np.ndarray]:
    normal = rng.standard_normal(128)
    return [
        normal * 1e-3,
        normal * 1e-8,  # below the machine epsilon: the scale is clamped
        normal * 1e-20,
        normal * 1e-40,  # subnormal
        normal * 3e4,  # scale near the end of f16
        normal * 1e7,  # scale overflows f16
        normal * 1e20,
        normal * 2.0**-24,
        np.sign(normal) * 2.0**-23,
        np.sign(normal) * np.float32(2.0**-23) * 7,
        np.where(rng.random(128) < 0.1, 1e4, 1e-4) * normal,
    ]


@zoo("core")
def extreme_values():
    return _numbers("extreme_values", _rows_extreme(np.random.default_rng(9)), False)


@zoo("core")
def extreme_values_large():
    return _numbers("extreme_values_large", _rows_extreme(np.random.default_rng(10)), True)


def _range_overflow(name, large):
    rng = np.random.default_rng(11)
    normal = np.clip(rng.standard_normal(128), -3, 3)
    most = float(np.finfo(np.float32).max)
    rows = [normal / 3 * most, np.abs(normal) / 3 * most, -np.abs(normal) / 3 * most, normal]
    b = Builder(name)
    size = 128 if large else 64
    data = np.concatenate([np.resize(row, size)[None] for row in rows] * size)[:size].astype(np.float32)
    x = b.param([2, size])
    y = op.matmul(x, op.constant(data, name="w0"), False, True, name="mm0")
    y = op.matmul(y, op.constant(np.ascontiguousarray(data.T), name="w1"), False, False, name="mm1")
    return b.model([b.linear(y, size, 32, "head")], [x])


@zoo("core")
def range_overflow():
    return _range_overflow("range_overflow", False)


@zoo("core")
def range_overflow_large():
    return _range_overflow("range_overflow_large", True)


def _rows_powers(_rng) -> list[np.ndarray]:
    """Group maxima on and next to powers of two: the MX exponent's edge cases."""
    rows = []
    for k in list(range(-31, 32, 2)) + [-30, -26, -13, 0, 2]:
        for nudge in (-1, 0, 1):
            # The maximum divided by 6 is 2^k, or one float beside it.
            top = np.float32(2.0**k)
            top = np.nextafter(top, np.float32(np.inf * nudge), dtype=np.float32) if nudge else top
            row = np.linspace(-1, 1, 128).astype(np.float32) * top * np.float32(5.9)
            row[::32] = top * np.float32(6)
            rows.append(row)
    return rows


@zoo("core")
def powers_of_two():
    return _numbers("powers_of_two", _rows_powers(None)[::2], False)


@zoo("core")
def powers_of_two_large():
    return _numbers("powers_of_two_large", _rows_powers(None), True)


def _all_codes(name, dtype, count):
    """Every value of an 8-bit or 16-bit float that is finite, as a weight."""
    b = Builder(name)
    if dtype == ov.Type.f16:
        bits = np.arange(65536, dtype=np.uint16)
        values = bits.view(np.float16)
        bits = bits[np.isfinite(values) & (np.abs(values.astype(np.float32)) < 1000)]
        bits = b.rng.permutation(bits)[:count]
        weight = raw_constant(bits.tobytes(), [count // 64, 64], "w", dtype)
    else:
        bits = np.arange(65536, dtype=np.uint32)
        values = (bits << 16).astype(np.uint32).view(np.float32)
        keep = np.isfinite(values) & (np.abs(values) < 1e30)
        bits = b.rng.permutation(bits[keep].astype(np.uint16))[:count]
        weight = raw_constant(bits.tobytes(), [count // 64, 64], "w", dtype)
    x = b.param([2, 64])
    y = op.matmul(x, decompress(weight, "w/convert"), False, True, name="mm")
    return b.model([y, b.linear(x, 64, 64, "fc"), b.linear(x, 64, 32, "head")], [x])


@zoo("core")
def f16_bit_patterns():
    return _all_codes("f16_bit_patterns", ov.Type.f16, 20480)


@zoo("core")
def bf16_bit_patterns():
    return _all_codes("bf16_bit_patterns", ov.Type.bf16, 20480)


@zoo("core")
def long_reduction():
    """Means over long rows: the order of the sum shows in the score's last bits."""
    b = Builder("long_reduction")
    x = b.param([1, 2048])
    y = b.linear(x, 2048, 4, "wide_small")  # 8192 elements
    y = b.linear(y, 4, 2048, "narrow")
    y = b.linear(y, 2048, 32, "wide_large")
    y = b.linear(y, 32, 64, "fc")
    return b.model([b.linear(y, 64, 32, "head")], [x])


def _near_ties(name, size):
    """Errors that differ, if at all, by the order in which they are summed."""
    b = Builder(name)
    x = b.param([2, size])
    base = b.values([size, size], 0.1)
    y = x
    for i in range(6):
        data = base[:, b.rng.permutation(size)]
        transpose = i % 2 == 0
        y = op.matmul(y, op.constant(data if transpose else np.ascontiguousarray(data.T), name=f"w{i}"), False, transpose, name=f"mm{i}")
    return b.model([y], [x])


@zoo("core")
def near_ties():
    return _near_ties("near_ties", 90)


@zoo("core")
def near_ties_large():
    return _near_ties("near_ties_large", 128)


# ---- already compressed -------------------------------------------------------------
def _gptq(b, name, dtype, outputs, inputs, group, zero_point=True):
    """What the IR of a GPTQ checkpoint holds."""
    groups = inputs // group
    bits = 4 if dtype in (ov.Type.u4, ov.Type.i4) else 8
    count = outputs * inputs * bits // 8
    codes = raw_constant(b.rng.integers(0, 256, count).astype(np.uint8).tobytes(), [outputs, groups, group], f"{name}.codes", dtype)
    w = op.convert(codes, ov.Type.f16, name=f"{name}.codes/convert")
    if zero_point:
        zero_bytes = b.rng.integers(0, 256, outputs * groups * bits // 8).astype(np.uint8).tobytes()
        zero = raw_constant(zero_bytes, [outputs, groups, 1], f"{name}.zero", dtype)
        w = op.subtract(w, op.convert(zero, ov.Type.f16, name=f"{name}.zero/convert"), name=f"{name}/subtract")
    scale = op.constant((b.rng.random([outputs, groups, 1]) * 0.01).astype(np.float16), name=f"{name}.scale")
    w = op.multiply(w, scale, name=f"{name}/multiply")
    w = op.reshape(w, op.constant(np.array([outputs, inputs], np.int64), name=f"{name}.shape"), False, name=f"{name}/reshape")
    return op.convert(w, ov.Type.f32, name=f"{name}/convert")


@zoo("core")
def gptq_like():
    b = Builder("gptq_like")
    ids = b.param([1, 4], "ids", np.int64)
    y = op.gather(b.const([96, 128], "table"), ids, op.constant(np.int64(0), name="axis"), name="embed")
    y = op.matmul(y, _gptq(b, "q", ov.Type.u4, 128, 128, 64), False, True, name="q_proj")
    y = op.matmul(y, _gptq(b, "k", ov.Type.i4, 128, 128, 128, False), False, True, name="k_proj")
    y = op.matmul(y, _gptq(b, "v", ov.Type.u8, 128, 128, 128), False, True, name="v_proj")
    y = b.linear(y, 128, 128, "dense")
    return b.model([b.linear(y, 128, 96, "lm_head")], [ids])


def _compressed(**arguments):
    import nncf

    model = mlp_large()
    arguments["mode"] = nncf.CompressWeightsMode(arguments.pop("mode"))
    return nncf.compress_weights(model, **arguments)


@zoo("core")
def compressed_before_int8():
    return _compressed(mode="int8_sym")


@zoo("core")
def compressed_before_int4():
    import nncf

    return _compressed(mode="int4_asym", group_size=32, ratio=0.5, backup_mode=nncf.BackupMode.NONE)


@zoo("core")
def compressed_before_nf4():
    import nncf

    return _compressed(mode="nf4", group_size=32, ratio=0.5, backup_mode=nncf.BackupMode.NONE)


@zoo("core")
def compressed_before_cb4():
    import nncf

    return _compressed(mode="cb4", ratio=0.5, backup_mode=nncf.BackupMode.NONE)


@zoo("core")
def compressed_before_mxfp4():
    import nncf

    return _compressed(mode="mxfp4", ratio=0.5, backup_mode=nncf.BackupMode.NONE)


# ---- things that must simply survive ----------------------------------------------------
@zoo("core")
def metadata():
    """rt_info of the model and of nodes, layouts, an old nncf section."""
    b = Builder("metadata")
    x = b.param([2, 64])
    x.set_layout(ov.Layout("NC"))
    y = b.linear(x, 64, 64, "fc")
    y.get_rt_info()["custom_note"] = "kept"
    model = b.model([b.linear(y, 64, 32, "head")], [x])
    model.set_rt_info("4.55.0", ["optimum", "transformers_version"])
    model.set_rt_info("a<b & \"c\" 'd'", ["conversion_parameters", "odd_text"])
    model.set_rt_info("YES", ["framework", "nested", "deep"])
    model.set_rt_info("2.0.0", ["nncf", "version"])
    model.set_rt_info("0.25", ["nncf", "weight_compression", "ratio"])
    model.set_rt_info("left", ["nncf", "other", "thing"])
    return model


@zoo("core")
def string_constant():
    b = Builder("string_constant")
    x = b.param([2, 64])
    text = op.constant(ov.Tensor(np.array(["hello", "", "compressed weights"])), shared_memory=False)
    text.set_friendly_name("strings")
    return b.model([b.linear(b.linear(x, 64, 64, "fc"), 64, 32, "head"), text], [x])


@zoo("core")
def constant_types():
    """Constants of many element types that are no weights, byte for byte."""
    b = Builder("constant_types")
    x = b.param([2, 64])
    results = [b.linear(b.linear(x, 64, 64, "fc"), 64, 32, "head")]
    for kind in (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64, np.float64, np.float16):
        values = b.rng.integers(0, 100, [3, 5]).astype(kind)
        results.append(op.constant(values, name=f"c_{np.dtype(kind).name}"))
    results.append(op.constant(np.array([True, False, True]), name="c_bool"))
    for dtype, size in ((ov.Type.u4, 3), (ov.Type.i4, 3), (ov.Type.nf4, 3), (ov.Type.u1, 1), (ov.Type.f8e4m3, 5), (ov.Type.f8e8m0, 5), (ov.Type.f4e2m1, 3)):
        data = b.rng.integers(0, 100, size).astype(np.uint8).tobytes()
        results.append(raw_constant(data, [5 if size == 3 else 8 if size == 1 else 5], f"c_{dtype.get_type_name()}", dtype))
    return b.model(results, [x])


@zoo("core")
def dynamic_shapes():
    b = Builder("dynamic_shapes")
    x = b.param([ov.Dimension(1, 8), -1, 64])
    y = b.linear(x, 64, 64, "fc", bias=True)
    y = op.reshape(y, op.constant(np.array([0, -1, 2, 32], np.int64), name="split_heads"), True, name="heads")
    return b.model([op.matmul(y, b.const([32, 64], "w"), False, False, name="mm"), op.shape_of(x, name="shape")], [x])


@zoo("core")
def scalar_and_broadcast_biases():
    b = Builder("scalar_and_broadcast_biases")
    x = b.param([2, 64])
    y = op.add(b.linear(x, 64, 64, "fc0"), op.constant(np.float32(0.5), name="scalar"), name="add0")
    y = op.multiply(y, b.const([64], "gamma"), name="mul")
    y = op.divide(y, op.constant(np.full([1, 64], 1.25, np.float32), name="div"), name="divide")
    y = op.gelu(y, "erf", name="gelu")
    return b.model([op.softmax(b.linear(y, 64, 32, "head"), -1, name="softmax")], [x])


# ---- data-free AWQ -------------------------------------------------------------------
ACTIVATIONS = ("relu", "clamp", "elu", "prelu", "sigmoid", "hsigmoid", "hard_sigmoid", "swish", "hswish", "selu", "gelu")


def activation(kind, y, b, name):
    def scalar(value, tail):
        return op.constant(np.float32(value), name=f"{name}/{tail}")

    return {
        "relu": lambda: op.relu(y, name=name),
        "clamp": lambda: op.clamp(y, -1.0, 1.0, name=name),
        "elu": lambda: op.elu(y, 1.0, name=name),
        "prelu": lambda: op.prelu(y, op.constant(np.array([0.1], np.float32), name=f"{name}/slope"), name=name),
        "sigmoid": lambda: op.sigmoid(y, name=name),
        "hsigmoid": lambda: op.hsigmoid(y, name=name),
        "hard_sigmoid": lambda: op.hard_sigmoid(y, scalar(0.2, "alpha"), scalar(0.5, "beta"), name=name),
        "swish": lambda: op.swish(y, name=name),
        "hswish": lambda: op.hswish(y, name=name),
        "selu": lambda: op.selu(y, scalar(1.67, "alpha"), scalar(1.05, "lambda"), name=name),
        "gelu": lambda: op.gelu(y, "erf", name=name),
    }[kind]()


def _awq_act(kind):
    def build():
        b = Builder(f"awq_act_{kind}")
        x = b.param([2, 64])
        y = activation(kind, b.linear(x, 64, 64, "up", bias=True), b, "act")
        y = b.linear(y, 64, 64, "down")
        return b.model([b.linear(y, 64, 32, "head")], [x])

    build.__name__ = f"awq_act_{kind}"
    return build


for _kind in ACTIVATIONS:
    zoo("awq")(_awq_act(_kind))


def _gated(name, act="swish", dtype=ov.Type.f32, rank3=False, batch_weight=False, transpose=True, large=False):
    b = Builder(name)
    hidden, inner = (96, 128) if large else (64, 96)
    x = b.param([2, 3, hidden] if rank3 or batch_weight else [3, hidden])

    def linear(y, inputs, outputs, layer):
        shape = [outputs, inputs] if transpose else [inputs, outputs]
        w = b.const([2] + shape if batch_weight else shape, f"{layer}.weight", dtype)
        if dtype != ov.Type.f32:
            w = decompress(w, f"{layer}.weight/convert")
        return op.matmul(y, w, False, transpose, name=layer)

    y = x
    for i in range(2):
        gate = linear(y, hidden, inner, f"gate{i}")
        if act:
            gate = activation(act, gate, b, f"act{i}")
        y = linear(op.multiply(gate, linear(y, hidden, inner, f"up{i}"), name=f"mul{i}"), inner, hidden, f"down{i}")
    return b.model([linear(y, hidden, 32, "head")], [x])


@zoo("awq")
def awq_gated():
    return _gated("awq_gated")


@zoo("awq")
def awq_gated_f16():
    return _gated("awq_gated_f16", dtype=ov.Type.f16)


@zoo("awq")
def awq_gated_bf16():
    return _gated("awq_gated_bf16", dtype=ov.Type.bf16)


@zoo("awq")
def awq_gated_rank3():
    return _gated("awq_gated_rank3", rank3=True)


@zoo("awq")
def awq_gated_batch_weight():
    return _gated("awq_gated_batch_weight", batch_weight=True)


@zoo("awq")
def awq_gated_not_transposed():
    return _gated("awq_gated_not_transposed", transpose=False)


@zoo("awq")
def awq_gated_large():
    return _gated("awq_gated_large", large=True)


@zoo("awq")
def awq_act_multiply():
    """Activation -> Multiply -> MatMul without a MatMul in front."""
    b = Builder("awq_act_multiply")
    x, g = b.param([2, 64]), b.param([2, 64], "g")
    y = op.multiply(op.swish(x, name="act"), g, name="mul")
    return b.model([b.linear(b.linear(y, 64, 64, "fc"), 64, 32, "head")], [x, g])


@zoo("awq")
def awq_act_3d():
    b = Builder("awq_act_3d")
    x = b.param([2, 5, 64])
    y = op.relu(op.matmul(x, b.const([2, 64, 64], "w0"), False, True, name="mm0"), name="act")
    y = op.matmul(y, b.const([2, 64, 64], "w1"), False, True, name="mm1")
    return b.model([op.matmul(y, b.const([2, 32, 64], "w2"), False, True, name="mm2")], [x])


@zoo("awq")
def awq_zero_channel():
    """A channel of zeros: the scale is clamped by epsilon."""
    b = Builder("awq_zero_channel")
    x = b.param([2, 64])
    data = b.values([64, 64])
    data[:, 5] = 0
    y = op.relu(b.linear(x, 64, 64, "up"), name="act")
    y = op.matmul(y, op.constant(data, name="down.weight"), False, True, name="down")
    return b.model([b.linear(y, 64, 32, "head")], [x])


@zoo("awq")
def awq_multi_consumer():
    """The activation feeds two MatMuls: NNCF's result is wrong there."""
    b = Builder("awq_multi_consumer")
    x = b.param([2, 64])
    y = op.relu(b.linear(x, 64, 64, "up"), name="act")
    a, c = b.linear(y, 64, 64, "down_a"), b.linear(y, 64, 64, "down_b")
    return b.model([b.linear(op.add(a, c, name="sum"), 64, 32, "head")], [x])


@zoo("awq")
def awq_act_with_result():
    """The activation is also a Result."""
    b = Builder("awq_act_with_result")
    x = b.param([2, 64])
    y = op.relu(b.linear(x, 64, 64, "up"), name="act")
    return b.model([b.linear(b.linear(y, 64, 64, "down"), 64, 32, "head"), y], [x])


@zoo("awq")
def awq_two_matmuls_multiply():
    """Two MatMuls feed the Multiply: which one NNCF merges hangs on a hash."""
    return _gated("awq_two_matmuls_multiply", act=None)
