"""The cases: which models with which options, in named groups.

Groups: int, lowbit, float, codebook, awq, scope, refuse, random, spelling, real,
published. `quick` takes a fixed part of the big groups, the same every time
(by a checksum of the case's name), and all of the small ones.
"""

from __future__ import annotations

import pathlib
import re
import zlib
from dataclasses import dataclass, field

import generator
import ir_xml
import published
import real_models
import spelling
import wild
import zoo
from options import CODEBOOKS, Options as O

GROUPS = ("int", "lowbit", "float", "codebook", "awq", "scope", "refuse", "random", "spelling", "real", "published")
RANDOM_GRAPHS = 300
# Seeds of the graphs of wild.py, and how many option sets each.
WILD_GRAPHS = 200
CHAINS = 100
WILD_SETS = 3
# Of the big groups, one case in so many is part of `quick`.
QUICK_PART = {"int": 3, "lowbit": 3, "float": 4, "codebook": 3, "awq": 2, "scope": 3, "random": 3, "spelling": 2, "real": 3}
# Of the cases on small models, one in so many is also run on the CPU.
INFERENCE_PART = 8


@dataclass(frozen=True)
class Case:
    group: str
    model: str
    path: pathlib.Path
    options: O
    infer: bool
    # Published expectations: element type by constant name, counts by type.
    expect_types: tuple[tuple[str, str], ...] = ()
    expect_counts: tuple[tuple[str, int], ...] = ()

    @property
    def name(self) -> str:
        return f"{self.group}/{self.model}/{self.options.label()}"


@dataclass
class CaseList:
    cases: list[Case] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


RATIOS = (0.0, 0.2, 0.5, 0.8, 0.99, 1.0)

INT_SETS = (
    [O(), O("int8_asym"), O("int8_sym"), O("int8_sym", ratio=1.0, group_size=-1)]
    + [O(mode, group_size=size) for mode in ("int4_sym", "int4_asym") for size in (None, -1, 32, 64, 128)]
    + [O("int4_sym", ratio=ratio, group_size=-1) for ratio in RATIOS]
    + [O("int4_asym", ratio=ratio, group_size=32) for ratio in (0.2, 0.5, 0.8, 0.99)]
    + [O("int4_asym", ratio=ratio, group_size=-1, all_layers=True) for ratio in (0.2, 0.5, 0.8, 1.0)]
    + [O("int4_sym", group_size=32, all_layers=True), O("int4_sym", group_size=64, all_layers=True, fallback="adjust")]
    + [O("int4_sym", group_size=size, fallback=fb) for size in (None, 48) for fb in ("error", "ignore", "adjust")]
    + [O("int4_asym", group_size=20, fallback="adjust"), O("int4_asym", group_size=32, ratio=0.5, fallback="ignore")]
    + [O("int4_asym", group_size=64, ratio=0.8, fallback="adjust"), O("int4_sym", group_size=1), O("int4_asym", group_size=3)]
    + [O("int4_sym", group_size=-1, ratio=0.5, backup=backup) for backup in ("none", "int8_sym", "int8_asym", "fp8_e4m3")]
    + [O("int4_asym", group_size=32, ratio=0.8, backup=backup) for backup in ("none", "int8_sym", "fp8_e4m3", "mxfp8_e4m3")]
    + [O("int4_sym", group_size=32, fallback="ignore", backup="none"), O("int4_sym", group_size=-1, backup="none", all_layers=True, ratio=0.5)]
    + [O("int4_sym", group_size=-1, metric="weight_quantization_error", ratio=0.5)]
)

LOWBIT_SETS = [
    o
    for mode in ("int3_sym", "int2_sym")
    for o in (
        O(mode),
        O(mode, group_size=-1),
        O(mode, group_size=32, ratio=0.5, fallback="ignore"),
        O(mode, group_size=64, fallback="adjust"),
        O(mode, group_size=-1, all_layers=True, backup="int8_sym", ratio=0.8),
    )
]

FLOAT_SETS = (
    [O("nf4"), O("nf4", group_size=-1), O("nf4", group_size=32, ratio=0.5, fallback="ignore")]
    + [O("nf4", group_size=64, fallback="adjust"), O("nf4", group_size=-1, all_layers=True, ratio=0.8, backup="none")]
    + [O("fp4"), O("fp4", group_size=-1), O("fp4", group_size=32, ratio=0.5, fallback="ignore", backup="int8_sym")]
    + [O("fp4", group_size=32, fallback="adjust"), O("fp4", group_size=-1, all_layers=True, ratio=0.8)]
    + [O("fp8_e4m3"), O("fp8_e4m3", group_size=-1), O("fp8_e4m3", group_size=32, fallback="ignore", backup="none")]
    + [O("fp8_e4m3", group_size=64, fallback="adjust", ratio=0.8), O("fp8_e4m3", group_size=-1, backup="int8_asym", ratio=0.5)]
    + [O("mxfp4"), O("mxfp4", fallback="ignore", backup="int8_asym"), O("mxfp4", ratio=0.8, backup="none")]
    + [O("mxfp8_e4m3"), O("mxfp8_e4m3", fallback="ignore", backup="none"), O("mxfp8_e4m3", ratio=0.5, backup="int8_asym")]
    + [O("mxfp8_e4m3", all_layers=True, group_size=32)]
    + [O("nvfp4"), O("nvfp4", fallback="ignore", ratio=0.8), O("nvfp4", group_size=16, all_layers=True, backup="fp8_e4m3")]
    + [O("nvfp4", ratio=0.5, backup="int8_sym", fallback="ignore")]
)

CODEBOOK_SETS = (
    [O("cb4"), O("cb4", group_size=64, fallback="adjust"), O("cb4", group_size=32, ratio=0.5, fallback="ignore")]
    + [O("cb4", all_layers=True, backup="none", ratio=0.8)]
    + [O("codebook", codebook="f32_16_json"), O("codebook", codebook="f16_16", group_size=32, fallback="ignore")]
    + [O("codebook", codebook="i8_128", ratio=0.8, group_size=-1)]
)
# Every table on these few models.
CODEBOOK_MODELS = ("mlp_large", "f16_weights", "f8e4m3_weights", "transposed_b", "signs_and_zeros", "odd_sizes", "embedding", "extreme_values")

AWQ_SETS = [
    o
    for mode in ("int4_sym", "int4_asym", "int3_sym", "int2_sym", "nf4", "cb4")
    for o in (O(mode, group_size=-1, awq=True), O(mode, group_size=32, awq=True, ratio=0.8), O(mode, group_size=-1, awq=True, all_layers=True))
] + [
    O("codebook", codebook="f32_16_json", awq=True),
    O("int4_sym", group_size=128, fallback="ignore", awq=True),
    O("int4_asym", group_size=64, fallback="adjust", awq=True),
]
AWQ_OTHER_MODELS = ("mlp", "mlp_large", "f16_weights", "transposed_b", "grouped_matmul", "convolutions", "no_weights")

REFUSALS = (
    [O(mode, ratio=0.5) for mode in ("int8_asym", "int8_sym")]
    + [O("int8_asym", group_size=64), O("int8_asym", group_size=32), O("int8_sym", all_layers=True), O("int8_asym", awq=True)]
    + [O("int8_asym", group_size=0), O("int8_asym", ratio=0.0), O("int8_asym", ratio=1.0), O("int8_sym", group_size=-2)]
    + [O("int8_asym", metric="weight_quantization_error"), O("int8_asym", metric="max_activation_variance")]
    + [O("int8_asym", backup=backup) for backup in ("none", "int8_asym", "int8_sym", "fp8_e4m3")]
    + [O(mode, ratio=ratio) for mode in ("int4_sym", "nf4", "mxfp4") for ratio in (-0.1, 1.5, 2.0)]
    + [O("int4_sym", group_size=size) for size in (0, -2, -128)]
    + [O("fp4", group_size=0), O("cb4", group_size=-3)]
    + [O(mode, group_size=size) for mode in ("mxfp4", "mxfp8_e4m3") for size in (-1, 16, 64, 0)]
    + [O("nvfp4", group_size=size) for size in (-1, 32, 8)]
    + [O(mode, fallback="adjust") for mode in ("mxfp4", "mxfp8_e4m3", "nvfp4")]
    + [O(mode, awq=True) for mode in ("mxfp4", "mxfp8_e4m3", "fp8_e4m3", "fp4", "nvfp4")]
    + [O("int4_sym", ratio=0.5, metric=metric) for metric in ("hessian_input_activation", "mean_activation_variance", "max_activation_variance", "mean_activation_magnitude")]
    + [O("int4_sym", metric="max_activation_variance", group_size=-1), O("int4_sym", ratio=0.0, metric="max_activation_variance", group_size=-1)]
    + [O("codebook")]
    + [O("codebook", codebook=name) for name in CODEBOOKS if name.startswith("bad")]
    + [O("int4_sym", group_size=-1, codebook="f32_16_json"), O("adaptive_codebook")]
    + [O("int4_sym", group_size=-1, names=("no such node",)), O("int4_sym", group_size=-1, types=("NoSuchType",)), O(patterns=("zzz.*",))]
    + [O("int4_sym", group_size=-1, patterns=("(",))]
)
REFUSAL_MODELS = ("mlp", "convolutions", "no_weights")


def _checksum(text: str) -> int:
    return zlib.crc32(text.encode())


def _scopes(path: pathlib.Path) -> list[dict]:
    """Ignored scopes that fit a model, from the names in it."""
    graph = ir_xml.read(path)
    weighted = [
        layer
        for layer in graph.layers.values()
        if layer.type in ("MatMul", "Convolution", "GroupConvolution", "Gather", "ConvolutionBackpropData")
    ]
    if not weighted:
        return []
    first, last = weighted[0], weighted[-1]
    out = [
        {"names": (first.name,)},
        {"names": (last.name,)},
        {"patterns": (re.escape(last.name) + "$",)},
        {"patterns": (re.escape(first.name[: max(1, len(first.name) // 2)]),)},
        {"patterns": (".*[02468]$|never",)},
        {"types": (first.type,)},
        {"types": (last.type, first.type)},
        {"names": (first.name, last.name), "types": ("Result",)},
        {"names": (first.name, "no such node")},
    ]
    constants = [
        graph.layers[source[0]].name
        for layer in weighted
        for source in layer.sources.values()
        if graph.layers[source[0]].type == "Const"
    ]
    if constants:
        out += [{"names": (constants[-1],)}, {"patterns": (".*weight$", ".*" + re.escape(constants[0][-3:]))}]
    return [dict(scope) for scope in {tuple(sorted(s.items())): s for s in out}.values()]


class Catalogue:
    def __init__(self, root: pathlib.Path, model_dir: pathlib.Path, level: str, groups: set[str], first_seed: int = 0):
        self._root, self._dir, self._level, self._groups = root, model_dir, level, groups
        self._first_seed = first_seed  # of the group random
        self.list = CaseList()
        self._seen: set[str] = set()

    def _add(self, group: str, model: str, path: pathlib.Path, options: O, part: int = 1, infer: bool = True, **expect) -> None:
        case = Case(group, model, path, options, False, **expect)
        if self._level == "quick" and _checksum(case.name) % part:
            return
        if case.name in self._seen:
            return
        self._seen.add(case.name)
        infer = infer and _checksum("infer " + case.name) % INFERENCE_PART == 0
        self.list.cases.append(Case(group, model, path, options, infer, **expect))

    def _zoo(self) -> list[tuple[str, pathlib.Path, frozenset[str]]]:
        out = []
        for model in zoo.MODELS.values():
            out.append((model.name, model.save(self._dir), model.tags))
            if "fp16" in model.tags:
                out.append((f"{model.name}-fp16", model.save(self._dir, fp16=True), model.tags))
        return out

    def build(self) -> CaseList:
        models = self._zoo()
        repository = real_models.repository_models(self._root)
        everywhere = [(name, path) for name, path, tags in models if "core" in tags] + sorted(repository.items())
        for group, sets in (("int", INT_SETS), ("lowbit", LOWBIT_SETS), ("float", FLOAT_SETS), ("codebook", CODEBOOK_SETS)):
            if group not in self._groups:
                continue
            for name, path in everywhere:
                for options in sets:
                    self._add(group, name, path, options, QUICK_PART[group])
        if "int" in self._groups:
            for name, path, tags in models:
                if "int" in tags or "awq" in tags:
                    for options in (O(), O("int4_sym", group_size=-1), O("int4_asym", group_size=32, fallback="ignore", ratio=0.5)):
                        self._add("int", name, path, options)
        paths = {name: path for name, path, _ in models}
        if "codebook" in self._groups:
            for name in CODEBOOK_MODELS:
                for table in CODEBOOKS:
                    if not table.startswith("bad"):
                        self._add("codebook", name, paths[name], O("codebook", codebook=table), QUICK_PART["codebook"])
        if "awq" in self._groups:
            targets = [(name, path) for name, path, tags in models if "awq" in tags]
            targets += [(name, paths[name]) for name in AWQ_OTHER_MODELS] + sorted(repository.items())
            for name, path in targets:
                for options in AWQ_SETS:
                    self._add("awq", name, path, options, QUICK_PART["awq"])
        if "scope" in self._groups:
            for name, path in everywhere:
                for scope in _scopes(path):
                    for options in (O(**scope), O("int4_sym", group_size=-1, **scope), O("int4_asym", group_size=-1, ratio=0.6, all_layers=True, **scope)):
                        self._add("scope", name, path, options, QUICK_PART["scope"] * 2)
        if "refuse" in self._groups:
            for name in REFUSAL_MODELS:
                for options in REFUSALS:
                    self._add("refuse", name, paths[name], options)
        if "random" in self._groups:
            self._random()
        if "spelling" in self._groups:
            for name in spelling.MODELS:
                for how in spelling.SPELLINGS:
                    path = spelling.save(how, paths[name])
                    for options in (O(), O("int4_asym", group_size=32, fallback="ignore", ratio=0.5, all_layers=True), O("int4_sym", group_size=-1, types=("MatMul",))):
                        self._add("spelling", path.stem, path, options, QUICK_PART["spelling"])
        if "real" in self._groups:
            self._real()
        if "published" in self._groups:
            for entry in published.entries(self._dir):
                self._add("published", entry.model, entry.path, entry.options, expect_types=entry.types, expect_counts=entry.counts)
        return self.list

    def _random(self) -> None:
        pool = [
            O("int8_asym"),
            O("int8_sym"),
            O("int4_sym", group_size=-1),
            O("int4_sym", group_size=-1, ratio=0.3),
            O("int4_asym", group_size=-1, ratio=0.6, all_layers=True),
            O("int4_asym", group_size=32, fallback="adjust", ratio=0.8),
            O("int4_sym", group_size=64, fallback="ignore"),
            O("int4_asym", group_size=32, backup="none", ratio=0.9, fallback="ignore"),
            O("nf4", group_size=-1, ratio=0.5),
            O("mxfp4", fallback="ignore", backup="int8_sym"),
            O("cb4", ratio=0.7),
            O("int2_sym", group_size=-1, ratio=0.7),
            O("int4_sym", group_size=-1, backup="int8_sym", ratio=0.99),
            O("nvfp4", fallback="ignore", ratio=0.5),
        ]
        graphs = RANDOM_GRAPHS // QUICK_PART["random"] if self._level == "quick" else RANDOM_GRAPHS
        for seed in range(self._first_seed, self._first_seed + graphs):
            path = generator.save(seed, self._dir)
            for i in range(4):
                self._add("random", path.stem, path, pool[_checksum(f"{seed}/{i}") % len(pool)])

        part = 5 if self._level == "quick" else 1
        for kind, count, options in ((wild.Wild, WILD_GRAPHS, wild.options), (wild.Chain, CHAINS, wild.awq_options)):
            for seed in range(self._first_seed, self._first_seed + count // part):
                path = wild.save(kind, seed, self._dir)
                for i in range(WILD_SETS):
                    self._add("random", path.stem, path, options(seed, i))

    def _real(self) -> None:
        found, self.list.missing = real_models.onnx_models(self._dir)
        sets = [
            O(),
            O("int8_sym"),
            O("int4_sym", group_size=-1),
            O("int4_asym", group_size=32, fallback="adjust"),
            O("int4_sym", group_size=64, fallback="ignore"),
            O("int4_sym", group_size=-1, ratio=0.5),
            O("int4_asym", group_size=-1, ratio=0.8, backup="int8_sym"),
            O("int4_sym", group_size=20, fallback="adjust", all_layers=True),
            O("int4_sym", group_size=-1, backup="none"),
            O("int3_sym", group_size=-1, ratio=0.8),
            O("nf4", group_size=-1, ratio=0.8),
            O("fp4", group_size=-1),
            O("nvfp4", fallback="ignore"),
            O("mxfp4", fallback="ignore", backup="int8_asym"),
            O("cb4"),
            O("codebook", codebook="f32_17"),
            O("int4_sym", group_size=-1, awq=True),
            O("int4_sym", group_size=128),
            O("int4_asym", group_size=-1, types=("Convolution",)),
        ]
        for name, path in found.items():
            for options in sets:
                # The large ones take seconds each.
                part = QUICK_PART["real"] * (2 if name.startswith("ppocr") else 1)
                self._add("real", name, path, options, part)
