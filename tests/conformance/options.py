"""One set of compression options: as NNCF's arguments and as ovpress's flags."""

from __future__ import annotations

import json
import pathlib
from dataclasses import asdict, dataclass

import numpy as np

# Tables for mode `codebook`: how NNCF gets them, and how a user writes the file.
# name: (element type, values, file extension)
CODEBOOKS: dict[str, tuple[str, list, str]] = {
    "f32_16_json": ("float32", [-1.0, -0.75, -0.5, -0.375, -0.25, -0.125, -0.0625, 0.0, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0], "json"),
    "f32_3_json": ("float32", [-1.0, 0.0, 1.0], "json"),
    "f32_2": ("float32", [-0.5, 0.25], "npy"),
    "f32_256": ("float32", [(i - 127) / 100 for i in range(256)], "npy"),
    "f32_17": ("float32", [(i - 8) * 0.125 for i in range(17)], "npy"),
    "f16_16": ("float16", [0.1 * i for i in range(-8, 8)], "npy"),
    "f64_16": ("float64", [0.1 * i for i in range(-8, 8)], "npy"),
    "i8_16": ("int8", list(range(-8, 8)), "npy"),
    "i8_128": ("int8", list(range(-64, 64)), "npy"),
    "u8_16": ("uint8", list(range(16)), "npy"),
    "f32_300": ("float32", [(i - 149) / 149 for i in range(300)], "npy"),
    "f16_1100": ("float16", [(i - 549) / 16 for i in range(1100)], "npy"),
    "f8e4m3_12_json": ("f8e4m3", [float(np.sign(i) * 2.0 ** abs(i)) for i in range(-6, 6)], "json"),
    # Their text in rt_info: with exponents, of three digits, limits of the type.
    "f32_exponents": ("float32", [-1e-5, 0.001, 123456.75], "npy"),
    "f16_overflow": ("float16", [-65504.0, -40000.0, 0.0, 40000.0, 65504.0], "npy"),
    "f64_huge": ("float64", [-1e300, 0.0, 1e300], "npy"),
    "f32_tiny": ("float32", [-1e-40, 0.0, 1e-40, 1e-4], "npy"),
    "f32_million": ("float32", [999998.5, 999999.0, 1000000.0], "npy"),
    "u32_3": ("uint32", [0, 5, 9], "npy"),
    # Integers that NNCF gets wrong or refuses, and what only NNCF takes.
    "i8_all": ("int8", list(range(-128, 128)), "npy"),
    "u8_wide": ("uint8", [0, 200, 255], "npy"),
    "i16_wide": ("int16", [-30000, -5, 0, 7, 32767], "npy"),
    "nan": ("float32", [-1.0, float("nan"), 1.0], "npy"),
    # Refused by both.
    "bad_equal": ("float32", [0.2, 0.2, 0.3, 0.4], "npy"),
    "bad_order": ("float32", [0.5, 0.2, 0.3, 0.4], "npy"),
    "bad_one": ("float32", [5.0], "npy"),
    "bad_2d": ("float32", [[-1, 0, 1, 2, 3], [-1, 0, 1, 2, 3]], "npy"),
}


@dataclass(frozen=True)
class Options:
    """None and () mean: not given, NNCF's default."""

    mode: str | None = None
    ratio: float | None = None
    group_size: int | None = None
    all_layers: bool = False
    backup: str | None = None
    names: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    fallback: str | None = None
    metric: str | None = None
    codebook: str | None = None
    awq: bool = False

    def label(self) -> str:
        """Short text that identifies the set, used in case names."""
        parts = [self.mode or "default"]
        for key, short in (("ratio", "r"), ("group_size", "g"), ("backup", "backup="), ("fallback", "fb="), ("metric", "metric="), ("codebook", "cb=")):
            value = getattr(self, key)
            if value is not None:
                parts.append(f"{short}{value}")
        parts += ["all"] if self.all_layers else []
        parts += ["awq"] if self.awq else []
        for key in ("names", "patterns", "types"):
            if getattr(self, key):
                parts.append(f"{key}={list(getattr(self, key))}")
        return ",".join(parts)

    def key(self) -> str:
        """Stable text of every option, for the cache of NNCF's results."""
        return json.dumps(asdict(self), sort_keys=True)

    def flags(self, work_dir: pathlib.Path) -> list[str]:
        """ovpress's command line flags."""
        out: list[str] = []
        for flag, value in (
            ("--mode", self.mode),
            ("--ratio", self.ratio),
            ("--group-size", self.group_size),
            ("--backup-mode", self.backup),
            ("--group-size-fallback", self.fallback),
            ("--sensitivity-metric", self.metric),
        ):
            if value is not None:
                # One word, so that a value such as -1 is not taken for a flag.
                out.append(f"{flag}={value}")
        out += ["--all-layers"] if self.all_layers else []
        out += ["--awq"] if self.awq else []
        for flag, values in (("name", self.names), ("pattern", self.patterns), ("type", self.types)):
            out += [f"--ignored-{flag}={value}" for value in values]
        if self.codebook is not None:
            out.append(f"--codebook={codebook_file(self.codebook, work_dir)}")
        return out

    def nncf_arguments(self) -> dict:
        """Keyword arguments of nncf.compress_weights."""
        import nncf
        from nncf.quantization.advanced_parameters import AdvancedCompressionParameters, GroupSizeFallbackMode

        out: dict = {}
        if self.mode is not None:
            out["mode"] = nncf.CompressWeightsMode(self.mode)
        if self.ratio is not None:
            out["ratio"] = self.ratio
        if self.group_size is not None:
            out["group_size"] = self.group_size
        if self.all_layers:
            out["all_layers"] = True
        if self.awq:
            out["awq"] = True
        if self.backup is not None:
            out["backup_mode"] = nncf.BackupMode(self.backup)
        if self.metric is not None:
            out["sensitivity_metric"] = nncf.SensitivityMetric(self.metric)
        if self.names or self.patterns or self.types:
            out["ignored_scope"] = nncf.IgnoredScope(
                names=list(self.names), patterns=list(self.patterns), types=list(self.types)
            )
        advanced: dict = {}
        if self.fallback is not None:
            advanced["group_size_fallback_mode"] = GroupSizeFallbackMode(self.fallback)
        if self.codebook is not None:
            advanced["codebook"] = nncf_codebook(self.codebook)
        if advanced:
            out["advanced_parameters"] = AdvancedCompressionParameters(**advanced)
        return out


def nncf_codebook(name: str):
    kind, values, _ = CODEBOOKS[name]
    if not kind.startswith("f8"):
        return np.array(values, dtype=kind)
    from nncf.tensor import Tensor, TensorDataType

    return Tensor(np.array(values, dtype=np.float32)).as_openvino_tensor().astype(TensorDataType(kind))


def codebook_file(name: str, work_dir: pathlib.Path) -> pathlib.Path:
    kind, values, extension = CODEBOOKS[name]
    path = work_dir / f"codebook-{name}.{extension}"
    if not path.exists():
        if extension == "npy":
            np.save(path, np.array(values, dtype=kind))
        elif kind == "float32":
            path.write_text(json.dumps(values))
        else:
            path.write_text(json.dumps({"dtype": kind, "values": values}))
    return path


