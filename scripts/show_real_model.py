#!/usr/bin/env python3
"""Compresses a network with trained weights and runs it before and after.

The network is PP-OCRv4's text recogniser, whose ONNX file lies in the package
rapidocr-onnxruntime; OpenVINO converts it to an IR. Prints sizes and how far the
outputs differ.
"""
import argparse
import importlib.util
import pathlib
import subprocess
import sys

import numpy as np
import openvino as ov


def recogniser() -> pathlib.Path:
    # Found without importing the package: its code needs more than its models.
    spec = importlib.util.find_spec("rapidocr_onnxruntime")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("rapidocr-onnxruntime is not installed: scripts/install-deps quickstart-python")
    found = sorted(pathlib.Path(spec.submodule_search_locations[0]).glob("models/*rec*.onnx"))
    if not found:
        sys.exit("rapidocr-onnxruntime holds no recogniser model")
    return found[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ovpress", required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--server", help="compress on a server instead of in the process")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    source = arguments.out / "ppocr_rec.xml"
    ov.save_model(ov.convert_model(recogniser()), source, compress_to_fp16=False)
    core = ov.Core()

    def outputs(path: pathlib.Path) -> np.ndarray:
        model = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        image = np.random.default_rng(7).uniform(-1, 1, (1, 3, 48, 320)).astype(np.float32)
        return model([image])[0]

    before = outputs(source)
    size = source.with_suffix(".bin").stat().st_size
    print(f"PP-OCRv4 recogniser: weights file {size:,} bytes")
    remote = ["--server", arguments.server] if arguments.server else []
    for flags in (["--mode", "int8_asym"], ["--mode", "int4_asym", "--group-size", "40", "--group-size-fallback", "adjust"]):
        target = arguments.out / f"ppocr_rec_{flags[1]}.xml"
        subprocess.run([arguments.ovpress, "compress", source, "-o", target, "--quiet", *flags, *remote], check=True)
        after = outputs(target)
        small = target.with_suffix(".bin").stat().st_size
        same = np.mean(before.argmax(-1) == after.argmax(-1))
        print(
            f"  {' '.join(flags[1::2]):24} {small:>12,} bytes, {size / small:.2f} times smaller; "
            f"outputs differ by {np.abs(before - after).mean():.5f} on average, best character equal in {same:.1%} of positions"
        )


if __name__ == "__main__":
    main()
