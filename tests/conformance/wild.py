"""Random graphs with fixed seeds, wilder than those of generator.py.

generator.py is about the order of layers. Here every weight has a random
element type, shape, chain of operations above it and distribution of values,
and stands in a random operation: what the models of zoo.py show one at a time
meets in one graph. The options are random as well. `Chain` is the same for
data-free AWQ: activations, products and MatMuls of random ranks and layouts,
put together so that NNCF's result is right and does not hang on a hash.
"""

from __future__ import annotations

import pathlib

import numpy as np
import openvino as ov
from openvino import opset1, opset6, opset7
from openvino import opset13 as op
from openvino import opset17 as op17

from options import Options
from zoo import ACTIVATIONS, Builder, activation, decompress, raw_constant, typed_constant

ROWS = 4
WIDTHS = (1, 2, 7, 16, 31, 32, 48, 64, 96, 100, 128, 130, 160)
ODD_NAMES = ("a<b&c", 'q"uote', "ap'os", "sla/sh", "com,ma", "sp ace", "Ünï", "tab\tx", "back\\slash", "x.nncf_codebook", "[1]", "Constant_7", "MatMul_9")


def values_of(rng: np.random.Generator, shape: list[int]) -> np.ndarray:
    """Values of one of several kinds; rows differ in size."""
    count = int(np.prod(shape))
    normal = rng.standard_normal(count)
    kind = int(rng.integers(12))
    if kind <= 3:
        out = normal * rng.uniform(0.01, 0.5)
    elif kind == 4:
        out = np.round(normal * 4) * 0.125  # many ties
    elif kind == 5:
        out = np.where(rng.random(count) < 0.7, np.where(rng.random(count) < 0.5, 0.0, -0.0), normal)
    elif kind == 6:
        out = -np.abs(normal)
    elif kind == 7:
        out = normal * 10.0 ** rng.uniform(-12, 5, count)
    elif kind == 8:
        out = np.zeros(count)
    elif kind == 9:
        out = np.full(count, rng.standard_normal())
    elif kind == 10:
        out = np.sign(normal) * 2.0 ** rng.integers(-20, 12, count)
    else:
        out = normal * 1e-41
    out = out.reshape(shape)
    if len(shape) > 1 and shape[0] > 0 and rng.random() < 0.3:
        out = out * (10.0 ** rng.uniform(-6, 4, [shape[0]] + [1] * (len(shape) - 1)))
    if len(shape) > 1 and shape[0] > 1 and rng.random() < 0.2:
        out[rng.integers(shape[0])] = 0
    return np.clip(out, -3e38, 3e38).astype(np.float32)


class Wild:
    def __init__(self, seed: int):
        self.rng = np.random.default_rng(77_000 + seed)
        self.name = f"wild_{seed:04d}"
        self.count = 0
        self.known: list[tuple[ov.Node, tuple[int, ...]]] = []
        self.params: list[ov.Node] = []
        self.sinks: list[ov.Node] = []
        self.large = self.chance(0.3)
        self.extra: list[ov.Node] = []

    def pick(self, items):
        return items[int(self.rng.integers(len(items)))]

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def fresh(self, kind: str) -> str:
        self.count += 1
        number = self.count
        if self.chance(0.02) and number > 6:
            return f"{kind}_dup"
        if self.chance(0.04):
            return f"{self.pick(ODD_NAMES)}_{number}" if self.chance(0.7) else self.pick(ODD_NAMES) + "x" * number
        return f"{self.rng.integers(1000):03d}/{kind}.{number}"

    def width(self) -> int:
        return int(self.pick(WIDTHS)) * (3 if self.large and self.chance(0.5) else 1)

    # ---- weights ---------------------------------------------------------------
    def constant(self, shape: list[int]) -> ov.Node:
        data = values_of(self.rng, shape)
        dtype = self.pick([ov.Type.f32] * 20 + [ov.Type.f16] * 10 + [ov.Type.bf16] * 5 + [ov.Type.f64] * 2 + [ov.Type.f8e4m3, ov.Type.f8e5m2])
        if dtype == ov.Type.f16:
            data = np.clip(data, -60000, 60000)
        node = typed_constant(data, self.fresh("w"), dtype)
        return node

    def f32(self, node: ov.Node) -> ov.Node:
        if node.get_element_type() == ov.Type.f32:
            return node
        if self.chance(0.15):
            node = op.convert(node, self.pick([ov.Type.f16, ov.Type.f64, ov.Type.bf16]), name=self.fresh("cvt"))
        if node.get_element_type() == ov.Type.f32:
            return node
        return decompress(node, self.fresh("cvt")) if self.chance(0.5) else op.convert(node, ov.Type.f32, name=self.fresh("cvt"))

    def reshaped(self, node: ov.Node, shape: list[int]) -> ov.Node:
        return op.reshape(node, op.constant(np.array(shape, np.int64), name=self.fresh("shape")), False, name=self.fresh("reshape"))

    def fake_quantize(self, node: ov.Node) -> ov.Node:
        ends = [op.constant(np.float32(v), name=self.fresh("fq")) for v in (-1.0, 1.0, -1.0, 1.0)]
        return op.fake_quantize(node, *ends, 256, name=self.fresh("fq"))

    def weight(self, *shape: int) -> ov.Node:
        """An f32 value of that shape: a weight, or something like one."""
        same = [node for node, known in self.known if known == shape]
        if same and self.chance(0.15):
            return self.pick(same)
        dims = list(shape)
        kind = self.pick(["plain"] * 12 + ["flat", "split", "fq", "fc", "transpose", "unsqueeze", "int", "low", "mul", "shapeof", "cvt2", "chain", "const_mm", "readvalue"])
        if kind == "flat":
            node = self.reshaped(self.f32(self.constant([int(np.prod(dims))])), dims)
        elif kind == "split" and dims[0] % 2 == 0 and dims[0] > 0:
            node = self.reshaped(self.f32(self.constant([2, dims[0] // 2] + dims[1:])), dims)
        elif kind == "fq":
            node = self.fake_quantize(self.f32(self.constant(dims)))
        elif kind == "fc":
            scale = op.constant(np.float32(1), name=self.fresh("fcs"))
            node = op.fake_convert(self.f32(self.constant(dims)), scale, destination_type=self.pick(["f8e4m3", "f8e5m2"]), name=self.fresh("fc"))
        elif kind == "transpose" and len(dims) == 2:
            order = op.constant(np.array([1, 0], np.int64), name=self.fresh("order"))
            node = op.transpose(self.f32(self.constant(dims[::-1])), order, name=self.fresh("tr"))
        elif kind == "unsqueeze" and dims[0] == 1:
            node = op.unsqueeze(self.f32(self.constant(dims[1:])), op.constant(np.int64(0), name=self.fresh("ax")), name=self.fresh("unsq"))
        elif kind == "int":
            data = self.rng.integers(-100, 100, dims).astype(np.int8)
            node = op.convert(op.constant(data, name=self.fresh("i8")), ov.Type.f32, name=self.fresh("cvt"))
            if self.chance(0.5):
                node = op.multiply(node, op.constant(np.float32(0.01), name=self.fresh("sc")), name=self.fresh("mul"))
        elif kind == "low" and int(np.prod(dims)) % 2 == 0 and int(np.prod(dims)) > 0:
            dtype = self.pick([ov.Type.u4, ov.Type.i4, ov.Type.nf4, ov.Type.f4e2m1])
            raw = self.rng.integers(0, 256, int(np.prod(dims)) // 2).astype(np.uint8).tobytes()
            node = op.convert(raw_constant(raw, dims, self.fresh("low"), dtype), ov.Type.f32, name=self.fresh("cvt"))
            if self.chance(0.6):
                node = op.multiply(node, op.constant(np.float32(0.01), name=self.fresh("sc")), name=self.fresh("mul"))
        elif kind == "mul":
            node = op.multiply(self.f32(self.constant(dims)), op.constant(np.float32(0.5), name=self.fresh("sc")), name=self.fresh("mul"))
        elif kind == "shapeof" and len(dims) == 2 and 0 not in dims:
            # A shape computed from a constant, then from a Parameter.
            other = self.constant(dims)
            node = op.reshape(self.f32(self.constant([dims[0] * dims[1]])), op.shape_of(other, name=self.fresh("so")), False, name=self.fresh("reshape"))
        elif kind == "cvt2":
            node = op.convert(self.f32(self.constant(dims)), ov.Type.f16, name=self.fresh("cvt"))
            node = op.convert(node, ov.Type.f32, name=self.fresh("cvt"))
        elif kind == "chain":
            node = self.f32(self.constant(dims))
            for _ in range(3):
                step = self.pick(["fq", "reshape", "convert"])
                if step == "fq":
                    node = self.fake_quantize(node)
                elif step == "reshape":
                    node = self.reshaped(self.reshaped(node, [int(np.prod(dims))]), dims)
                else:
                    node = op.convert(op.convert(node, ov.Type.f16, name=self.fresh("cvt")), ov.Type.f32, name=self.fresh("cvt"))
        elif kind == "const_mm" and len(dims) == 2:
            node = op.matmul(self.f32(self.constant([dims[0], 8])), self.f32(self.constant([8, dims[1]])), False, False, name=self.fresh("mmc"))
        elif kind == "readvalue":
            node = self.state(self.f32(self.constant(dims)))
        else:
            node = self.f32(self.constant(dims))
        self.known.append((node, shape))
        if self.chance(0.05):
            self.extra.append(node)  # a Result of its own
        return node

    def state(self, init: ov.Node) -> ov.Node:
        name = self.fresh("var")
        node = opset6.read_value(init, name, name=self.fresh("read"))
        self.sinks.append(opset6.assign(node, name, name=self.fresh("assign")))
        return node

    # ---- operations on [ROWS, width] ----------------------------------------------
    def linear(self, x, width, out=None):
        out = out or self.width()
        if self.chance(0.6):
            return op.matmul(x, self.weight(out, width), False, True, name=self.fresh("mm")), out
        return op.matmul(x, self.weight(width, out), False, False, name=self.fresh("mm")), out

    def batched(self, x, width):
        out = self.width()
        y = self.reshaped(x, [2, 2, width])
        batch = self.pick([1, 2])
        if self.chance(0.5):
            y = op.matmul(y, self.weight(batch, out, width), False, True, name=self.fresh("mm3"))
        else:
            y = op.matmul(y, self.weight(batch, width, out), False, False, name=self.fresh("mm3"))
        return self.reshaped(y, [ROWS, out]), out

    def batched4(self, x, width):
        y = self.reshaped(x, [2, 1, 2, width])
        y = op.matmul(y, self.weight(1, 3, 5, width), False, True, name=self.fresh("mm4"))
        return self.reshaped(y, [ROWS, 15]), 15

    def grouped(self, x, width):
        out = self.width()
        y = op17.grouped_matmul(self.reshaped(x, [2, 2, width]), self.weight(2, out, width), name=self.fresh("gmm"))
        return self.reshaped(y, [ROWS, out]), out

    def left(self, x, width):
        if self.chance(0.5):
            return op.matmul(self.weight(ROWS, ROWS), x, self.chance(0.5), False, name=self.fresh("left")), width
        transposed = op.transpose(x, op.constant(np.array([1, 0], np.int64), name=self.fresh("order")), name=self.fresh("tr"))
        y = op.matmul(self.weight(width, 5), transposed, True, False, name=self.fresh("left"))  # [5, ROWS]
        return op.transpose(y, op.constant(np.array([1, 0], np.int64), name=self.fresh("order")), name=self.fresh("tr")), 5

    def vector(self, x, width):
        y = op.matmul(x, self.weight(width), False, self.chance(0.5), name=self.fresh("mmv"))
        return self.reshaped(y, [ROWS, 1]), 1

    def conv(self, x, width):
        y = self.reshaped(x, [1, ROWS, 1, width])
        kind = self.pick(["conv", "group", "depth", "back", "gback", "conv1", "conv3"])
        one, zero = [1, 1], [0, 0]
        if kind == "conv":
            y = op.convolution(y, self.weight(ROWS, ROWS, 1, 1), one, zero, zero, one, name=self.fresh("conv"))
        elif kind == "group":
            y = op.group_convolution(y, self.weight(2, 2, 2, 1, 1), one, zero, zero, one, name=self.fresh("gconv"))
        elif kind == "depth":
            y = op.group_convolution(y, self.weight(ROWS, 1, 1, 1, 1), one, zero, zero, one, name=self.fresh("dconv"))
        elif kind == "back":
            y = op.convolution_backprop_data(y, self.weight(ROWS, ROWS, 1, 1), one, None, zero, zero, one, name=self.fresh("bconv"))
        elif kind == "gback":
            y = op.group_convolution_backprop_data(y, self.weight(2, 2, 2, 1, 1), one, None, zero, zero, one, name=self.fresh("gbconv"))
        elif kind == "conv1":
            y = op.convolution(self.reshaped(y, [1, ROWS, width]), self.weight(ROWS, ROWS, 3), [1], [1], [1], [1], name=self.fresh("conv1"))
        else:
            y = op.convolution(self.reshaped(y, [1, ROWS, 1, 1, width]), self.weight(ROWS, ROWS, 1, 1, 1), [1] * 3, [0] * 3, [0] * 3, [1] * 3, name=self.fresh("conv3"))
        return self.reshaped(y, [ROWS, width]), width

    def embedding(self):
        width = self.width()
        ids = op.parameter([ROWS], self.pick([np.int32, np.int64]), name=self.fresh("ids"))
        ids.output(0).set_names({f"ids{len(self.params)}"})
        self.params.append(ids)
        axis = op.constant(np.int64(0), name=self.fresh("axis"))
        kind = self.pick(["v8", "v7", "v1", "axis1", "rank3"])
        if kind == "axis1":
            y = op.gather(self.weight(width, 24), ids, op.constant(np.int64(1), name=self.fresh("axis")), name=self.fresh("emb"))
            return self.reshaped(y, [ROWS, width]), width
        if kind == "rank3":
            return self.reshaped(op.gather(self.weight(9, 2, width), ids, axis, name=self.fresh("emb")), [ROWS, 2 * width]), 2 * width
        table = self.weight(self.pick([3, 24, 64]), width)
        if kind == "v1":
            return opset1.gather(table, ids, axis, name=self.fresh("emb")), width
        if kind == "v7":
            return opset7.gather(table, ids, axis, name=self.fresh("emb")), width
        return op.gather(table, ids, axis, name=self.fresh("emb")), width

    def bodies(self, x, width):
        """An If whose branches hold constants and MatMuls."""
        cond = op.parameter([], np.bool_, name=self.fresh("cond"))
        self.params.append(cond)
        branches = []
        for i in range(2):
            inner = op.parameter([ROWS, width], np.float32, name=self.fresh("inner"))
            data = values_of(self.rng, [width, width]).clip(-10, 10)
            w = op.constant(data, name=self.fresh("bw"))
            y = op.matmul(inner, w, False, True, name=self.fresh("bmm"))
            branches.append((ov.Model([op.result(y, name=self.fresh("bres"))], [inner], f"branch{i}"), inner))
        node = op.if_op(cond)
        node.set_friendly_name(self.fresh("if"))
        for (model, inner), setter in zip(branches, (node.set_then_body, node.set_else_body)):
            setter(model)
        node.set_input(x.output(0), branches[0][1], branches[1][1])
        y = node.set_output(branches[0][0].results[0], branches[1][0].results[0])
        return op.relu(y, name=self.fresh("relu")), width

    def build(self) -> ov.Model:
        live: list[tuple[ov.Node, int]] = []
        for _ in range(int(self.rng.integers(1, 4))):
            if self.chance(0.35):
                live.append(self.embedding())
                continue
            width = self.width()
            p = op.parameter([ROWS if self.chance(0.7) else -1, width], np.float32, name=self.fresh("in"))
            p.output(0).set_names({f"in{len(self.params)}"})
            self.params.append(p)
            live.append((p, width))
        steps = ["linear"] * 8 + ["batched", "batched4", "grouped", "left", "vector", "conv", "conv", "embedding", "if", "state"]
        steps += ["relu", "add", "multiply", "concat", "bias", "gelu", "split", "half"]
        for _ in range(int(self.rng.integers(3, 14))):
            x, width = self.pick(live[-4:])
            kind = self.pick(steps)
            if kind in ("linear", "batched", "batched4", "grouped", "left", "vector", "conv"):
                y = getattr(self, kind)(x, width)
            elif kind == "embedding":
                y = self.embedding()
            elif kind == "if":
                y = self.bodies(x, width)
            elif kind == "state":
                y = (self.state(self.reshaped(x, [ROWS, width])), width)
            elif kind in ("add", "multiply"):
                others = [node for node, w in live if w == width]
                y = ((op.add if kind == "add" else op.multiply)(x, self.pick(others), name=self.fresh(kind)), width)
            elif kind == "concat":
                other, w = self.pick(live)
                y = (op.concat([self.reshaped(x, [ROWS, width]), self.reshaped(other, [ROWS, w])], 1, name=self.fresh("cat")), width + w)
            elif kind == "bias":
                y = (op.add(x, self.weight(1, width), name=self.fresh("bias")), width)
            elif kind == "split" and width % 2 == 0:
                s = op.split(x, op.constant(np.int64(1), name=self.fresh("axis")), 2, name=self.fresh("split"))
                y = (op.relu(s.output(self.pick([0, 1])), name=self.fresh("relu")), width // 2)
            elif kind == "half":
                h = op.convert(x, ov.Type.f16, name=self.fresh("h"))
                out = self.width()
                w = self.constant([out, width])
                if w.get_element_type() != ov.Type.f16:
                    w = op.convert(w, ov.Type.f16, name=self.fresh("cvt"))
                h = op.matmul(h, w, False, True, name=self.fresh("mmh"))
                y = (op.convert(h, ov.Type.f32, name=self.fresh("cvt")), out)
            elif kind == "gelu":
                y = (op.gelu(x, "tanh", name=self.fresh("gelu")), width)
            else:
                y = (op.relu(x, name=self.fresh("relu")), width)
            live.append(y)
        ends = [node for node, _ in live if not node.output(0).get_target_inputs()] or [live[-1][0]]
        ends = [ends[i] for i in self.rng.permutation(len(ends))][:3] + self.extra
        results = [op.result(node, name=self.fresh("result")) for node in ends]
        if self.sinks:
            return ov.Model(results, self.sinks, self.params, self.name)
        return ov.Model(results, self.params, self.name)


class Chain:
    """MatMuls, activations and products in a row; all weights of one type and
    one layout, no MatMul in two matches."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(88_000 + seed)
        self.name = f"chain_{seed:04d}"
        self.builder = Builder(self.name)
        self.count = 0
        self.dtype = self.pick([ov.Type.f32, ov.Type.f32, ov.Type.f16, ov.Type.f64])
        self.transpose = self.chance(0.6)
        rank = self.pick([2, 2, 3, 3, 4])
        batch = self.pick([1, 2, 3])
        self.batch = [batch] if rank == 3 and self.chance(0.4) else []
        lead = {2: [], 3: [batch], 4: [1, 2]}[rank]
        self.lead = [-1] * len(lead) if self.chance(0.2) and not self.batch else lead
        self.rows = self.pick([1, 3, -1])

    pick, chance = Wild.pick, Wild.chance

    def fresh(self, kind: str) -> str:
        self.count += 1
        return f"{self.rng.integers(100):02d}_{kind}{self.count}"

    def matmul(self, x: ov.Node, inputs: int, outputs: int) -> ov.Node:
        shape = self.batch + ([outputs, inputs] if self.transpose else [inputs, outputs])
        data = (self.rng.standard_normal(shape) * self.rng.uniform(0.01, 1)).astype(np.float32)
        if self.chance(0.15):
            data[..., int(self.rng.integers(shape[-1]))] = 0
        if self.chance(0.1):
            data *= np.float32(10.0 ** self.rng.uniform(-8, 3))
        weight = typed_constant(data, self.fresh("w"), self.dtype)
        if self.dtype != ov.Type.f32:
            weight = decompress(weight, self.fresh("cvt"))
        return op.matmul(x, weight, False, self.transpose, name=self.fresh("mm"))

    def act(self, x: ov.Node) -> ov.Node:
        return activation(self.pick(ACTIVATIONS), x, self.builder, self.fresh("act"))

    def product(self, a: ov.Node, b: ov.Node) -> ov.Node:
        return op.multiply(*((a, b) if self.chance(0.5) else (b, a)), name=self.fresh("mul"))

    def build(self) -> ov.Model:
        params: list[ov.Node] = []

        def param(width: int) -> ov.Node:
            params.append(op.parameter(self.lead + [self.rows, width], np.float32, name=self.fresh("in")))
            return params[-1]

        width = self.pick([32, 64, 96, 100])
        y = param(width)
        for _ in range(int(self.rng.integers(1, 4))):
            out = self.pick([32, 64, 96, 100])
            y = self.matmul(y, width, out)
            kind = self.pick(["act", "act*input", "act*constant", "act*scalar", "mm*input", "act*mm"])
            if kind in ("mm*input", "act*mm"):
                # The Tanh keeps the MatMul before it out of the match behind it.
                y = self.matmul(op.tanh(y, name=self.fresh("tanh")), out, out)
            if kind != "mm*input":
                y = self.act(y)
            if kind in ("act*input", "mm*input"):
                y = self.product(y, param(out))
            elif kind == "act*constant":
                y = self.product(y, op.constant(self.rng.standard_normal([out]).astype(np.float32), name=self.fresh("c")))
            elif kind == "act*scalar":
                y = self.product(y, op.constant(np.float32(0.5), name=self.fresh("c")))
            elif kind == "act*mm":
                y = self.product(y, self.matmul(param(out), out, out))
            width = out
        y = self.matmul(self.matmul(y, width, 64), 64, 16)
        return ov.Model([op.result(y, name="result")], params, self.name)


MODES = ["int8_asym", "int8_sym"] + ["int4_sym", "int4_asym"] * 4 + ["int3_sym", "int2_sym", "nf4", "nf4", "fp4", "fp8_e4m3", "mxfp4", "mxfp8_e4m3", "nvfp4", "cb4", "codebook"]
FIXED = ("mxfp4", "mxfp8_e4m3", "nvfp4")


def options(seed: int, index: int) -> Options:
    rng = np.random.default_rng(seed * 100 + index)

    def pick(items):
        return items[int(rng.integers(len(items)))]

    mode = pick(MODES)
    if mode.startswith("int8"):
        return Options(mode)
    types = (pick(["MatMul", "Gather", "Convolution", "GroupConvolution", "Constant", "Convert"]),) if rng.random() < 0.1 else ()
    backup = pick([None, None, "none", "int8_sym", "int8_asym", "int8_asym", "fp8_e4m3", "mxfp8_e4m3"])
    if mode.startswith(("fp", "mxfp")) and rng.random() < 0.7:
        backup = pick(["int8_sym", "int8_asym", "none"])
    return Options(
        mode,
        group_size=None if mode in FIXED else pick([None, -1, -1, -1, 1, 2, 3, 7, 16, 32, 32, 64, 5, 128]),
        fallback=pick([None, "ignore", "ignore"]) if mode in FIXED else pick([None, "ignore", "ignore", "ignore", "adjust", "adjust"]),
        ratio=pick([None, None, 0.0, 0.1, 0.33, 0.5, 0.77, 0.9, 0.999, 1.0]),
        backup=backup,
        all_layers=bool(rng.random() < 0.35),
        codebook=pick(["f32_16_json", "f16_16", "i8_128", "f32_300"]) if mode == "codebook" else None,
        types=types,
    )


def awq_options(seed: int, index: int) -> Options:
    rng = np.random.default_rng(seed * 100 + index)

    def pick(items):
        return items[int(rng.integers(len(items)))]

    return Options(
        pick(["int4_sym", "int4_asym", "int3_sym", "int2_sym", "nf4", "cb4"]),
        group_size=pick([-1, -1, 32, 16, 64]),
        fallback=pick(["ignore", "adjust"]),
        ratio=pick([None, None, 0.5, 0.8]),
        all_layers=bool(rng.random() < 0.5),
        backup=pick([None, None, "none", "int8_sym"]),
        awq=True,
    )


def save(kind: type, seed: int, directory: pathlib.Path) -> pathlib.Path:
    """Every fifth model as f16."""
    graph = kind(seed)
    path = directory / f"{graph.name}.xml"
    if not path.exists():
        ov.save_model(graph.build(), path, compress_to_fp16=seed % 5 == 0)
    return path
