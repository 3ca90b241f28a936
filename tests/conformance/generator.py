"""Random small graphs with fixed seeds.

They exist for what depends on the whole graph: the order in which NNCF visits
nodes (which layer is the last, how ties break), sharing of constants, mixed
element types. Each weight has its own spread, so sensitivity scores are either
far apart or, for deliberate copies, exactly equal.
"""

from __future__ import annotations

import pathlib

import numpy as np
import openvino as ov
from openvino import opset13 as op

from zoo import decompress, raw_constant, typed_constant

ROWS = 4
WIDTHS = (32, 64, 96, 128, 40)


class Random:
    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.name = f"random_{seed:04d}"
        self.count = 0
        self.weights: list[tuple[ov.Node, tuple[int, int]]] = []
        self.axis = op.constant(np.int64(0), name="axis")

    def pick(self, items):
        return items[int(self.rng.integers(len(items)))]

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def fresh(self, kind: str) -> str:
        """A unique name whose alphabetical order says nothing about the graph."""
        self.count += 1
        if self.chance(0.03) and self.count > 4:
            return f"{kind}_dup"
        return f"{self.rng.integers(1000):03d}_{kind}_{self.count}"

    def weight(self, rows: int, columns: int) -> ov.Node:
        """A new weight, or one used before."""
        known = [node for node, shape in self.weights if shape == (rows, columns)]
        if known and self.chance(0.12):
            return self.pick(known)
        scale = 0.02 * (1 + 0.173 * len(self.weights)) * self.rng.uniform(0.9, 1.1)
        if known and self.chance(0.05):
            # An exact copy under another name: a tie.
            original = self.pick(known)
            if original.get_type_name() == "Constant" and original.get_element_type() == ov.Type.f32:
                node = op.constant(np.array(original.data), name=self.fresh("copy"))
                self.weights.append((node, (rows, columns)))
                return node
        values = (self.rng.standard_normal([rows, columns]) * scale).astype(np.float32)
        name = self.fresh("w")
        dtype = self.pick([ov.Type.f32] * 6 + [ov.Type.f16, ov.Type.f16, ov.Type.bf16])
        if self.chance(0.06):
            codes = self.rng.integers(0, 256, rows * columns // 2).astype(np.uint8).tobytes()
            node = op.convert(raw_constant(codes, [rows, columns], name, ov.Type.i4), ov.Type.f32, name=self.fresh("convert"))
            node = op.multiply(node, op.constant(np.float32(0.01), name=self.fresh("scale")), name=self.fresh("mul"))
        elif dtype == ov.Type.f32 and self.chance(0.08):
            flat = typed_constant(values.reshape(-1), name, dtype)
            shape = op.constant(np.array([rows, columns], np.int64), name=self.fresh("shape"))
            node = op.reshape(flat, shape, False, name=self.fresh("reshape"))
        else:
            node = typed_constant(values, name, dtype)
            if dtype != ov.Type.f32:
                node = decompress(node, self.fresh("decompress"))
        self.weights.append((node, (rows, columns)))
        return node

    def linear(self, x: ov.Node, width: int, out: int) -> ov.Node:
        if self.chance(0.6):
            return op.matmul(x, self.weight(out, width), False, True, name=self.fresh("mm"))
        return op.matmul(x, self.weight(width, out), False, False, name=self.fresh("mm"))

    def left(self, x: ov.Node, width: int) -> ov.Node:
        """The constant on port 0: mixes rows."""
        transpose = self.chance(0.5)
        return op.matmul(self.weight(ROWS, ROWS), x, transpose, False, name=self.fresh("left"))

    def convolution(self, x: ov.Node, width: int) -> ov.Node:
        shape = op.constant(np.array([1, ROWS, 1, width], np.int64), name=self.fresh("shape"))
        y = op.reshape(x, shape, False, name=self.fresh("to4d"))
        values = (self.rng.standard_normal([ROWS, ROWS, 1, 3]) * 0.1).astype(np.float32)
        y = op.convolution(y, op.constant(values, name=self.fresh("conv_w")), [1, 1], [0, 1], [0, 1], [1, 1], name=self.fresh("conv"))
        back = op.constant(np.array([ROWS, width], np.int64), name=self.fresh("shape"))
        return op.reshape(y, back, False, name=self.fresh("to2d"))

    def build(self) -> ov.Model:
        params, live = [], []  # live: (node, width)
        for _ in range(int(self.rng.integers(1, 4))):
            width = self.pick(WIDTHS)
            if self.chance(0.3):
                p = op.parameter([ROWS], np.int32, name=self.fresh("ids"))
                y = op.gather(self.weight(self.pick((32, 64)), width), p, self.axis, name=self.fresh("embed"))
            else:
                p = op.parameter([ROWS, width], np.float32, name=self.fresh("in"))
                y = p
            p.output(0).set_names({p.get_friendly_name()})
            params.append(p)
            live.append((y, width))
        for _ in range(int(self.rng.integers(4, 16))):
            x, width = self.pick(live)
            kind = self.pick(["linear"] * 6 + ["relu", "add", "add", "multiply", "concat", "left", "conv", "bias", "sin"])
            if kind == "linear":
                out = self.pick(WIDTHS)
                live.append((self.linear(x, width, out), out))
            elif kind == "relu":
                live.append((op.relu(x, name=self.fresh("relu")), width))
            elif kind == "sin":
                live.append((op.tanh(x, name=self.fresh("tanh")), width))
            elif kind in ("add", "multiply"):
                others = [node for node, w in live if w == width]
                make = op.add if kind == "add" else op.multiply
                live.append((make(x, self.pick(others), name=self.fresh(kind)), width))
            elif kind == "concat":
                y, other = self.pick(live)
                out = self.pick(WIDTHS)
                joined = op.concat([x, y], 1, name=self.fresh("concat"))
                live.append((self.linear(joined, width + other, out), out))
            elif kind == "left":
                live.append((self.left(x, width), width))
            elif kind == "conv":
                live.append((self.convolution(x, width), width))
            else:
                bias = op.constant(self.rng.standard_normal([1, width]).astype(np.float32), name=self.fresh("bias"))
                live.append((op.add(x, bias, name=self.fresh("add")), width))
        # What nothing reads becomes a Result, in random order.
        ends = [node for node, _ in live if not node.output(0).get_target_inputs()] or [live[-1][0]]
        ends = [ends[i] for i in self.rng.permutation(len(ends))][:3]
        results = [op.result(node, name=self.fresh("result")) for node in ends]
        return ov.Model(results, params, self.name)


def save(seed: int, directory: pathlib.Path) -> pathlib.Path:
    path = directory / f"random_{seed:04d}.xml"
    if not path.exists():
        ov.save_model(Random(seed).build(), path, compress_to_fp16=False)
    return path
