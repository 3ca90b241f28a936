"""Runs NNCF on a model file: the judge of every case.

NNCF is called as its documentation says: read_model, compress_weights,
save_model(compress_to_fp16=False). Three things around it are changed, for
speed and quiet only: no progress bars, no logging, and the small OpenVINO
models that NNCF compiles to score weights are kept from one call to the next.
Those it compiles to quantize must not be kept: their outputs share memory with
the model, so a second weight would overwrite the first one's codes.
`plain=True` leaves NNCF alone; the self test compares the two.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pathlib
import shutil
from dataclasses import dataclass

os.environ.setdefault("NNCF_CI", "1")  # no telemetry

from options import Options

# Part of the cache's key: raise it when what this file stores changes.
_CACHE_FORMAT = "2"
# Compiled helper models that are kept; cleared as a whole beyond that.
_MAX_COMPILED = 300
# OpenVINO numbers the nodes of a process; a name it invents (Convert_17) can
# meet one that the input model already has. Starting the numbers here keeps
# the judge's names apart from those of any input.
_FIRST_NUMBER = 100_000


@dataclass
class Verdict:
    """NNCF's result: a saved model, or the error it raised."""

    xml: pathlib.Path | None
    error: str | None


class Oracle:
    def __init__(self, work_dir: pathlib.Path, cache_dir: pathlib.Path | None = None, plain: bool = False):
        import nncf
        import openvino as ov
        import openvino.opset13

        nncf.set_log_level(logging.CRITICAL)
        self._ov = ov
        self._nncf = nncf
        self.core = ov.Core()
        self._work = work_dir
        self._cache = cache_dir
        self._hashes: dict[pathlib.Path, str] = {}
        for _ in range(_FIRST_NUMBER):
            ov.opset13.constant(0)
        if not plain:
            self._quicken()

    @staticmethod
    def _quicken() -> None:
        from nncf.openvino.optimized_functions import models
        from nncf.quantization.algorithms.weight_compression import algorithm, awq, mixed_precision, openvino_backend

        for module in (algorithm, awq, mixed_precision):
            module.track = lambda sequence, **_: sequence

        def clear_if_large() -> None:
            if len(models.OV_MODEL_CACHE._cache) > _MAX_COMPILED:
                models.OV_MODEL_CACHE.clear()

        openvino_backend.clear_ov_model_cache = clear_if_large

    def _key(self, model: pathlib.Path, options: Options) -> str:
        if model not in self._hashes:
            digest = hashlib.sha256(model.read_bytes())
            weights = model.with_suffix(".bin")
            digest.update(weights.read_bytes() if weights.exists() else b"")
            self._hashes[model] = digest.hexdigest()
        versions = f"{_CACHE_FORMAT} {self._nncf.__version__} {self._ov.__version__}"
        return hashlib.sha256(f"{versions} {self._hashes[model]} {options.key()}".encode()).hexdigest()

    def judge(self, model: pathlib.Path, options: Options) -> Verdict:
        if self._cache is None:
            return self._run(model, options, self._work / "nncf.xml")
        key = self._key(model, options)
        xml = self._cache / key[:2] / f"{key}.xml"
        error = xml.with_suffix(".error")
        if xml.exists():
            return Verdict(xml, None)
        if error.exists():
            return Verdict(None, error.read_text())
        verdict = self._run(model, options, self._work / "nncf.xml")
        xml.parent.mkdir(parents=True, exist_ok=True)
        if verdict.error is not None:
            error.write_text(verdict.error)
            return verdict
        # The .xml last: it is what marks the entry as complete.
        for suffix in (".bin", ".xml"):
            source = verdict.xml.with_suffix(suffix)
            if source.exists():
                shutil.copy(source, xml.with_suffix(suffix + ".part"))
                os.replace(xml.with_suffix(suffix + ".part"), xml.with_suffix(suffix))
        return Verdict(xml, None)

    def _run(self, model: pathlib.Path, options: Options, out: pathlib.Path) -> Verdict:
        try:
            arguments = options.nncf_arguments()
            network = self.core.read_model(model)
            network = self._nncf.compress_weights(network, **arguments)
        except Exception as error:  # NNCF raises nearly anything
            lines = str(error).strip().splitlines() or [""]
            return Verdict(None, f"{type(error).__name__}: {lines[0]}")
        remove(out)
        self._ov.save_model(network, out, compress_to_fp16=False)
        return Verdict(out, None)

    def rewrite(self, model: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
        """Reads and writes a model, so that two files show OpenVINO's view of both."""
        remove(out)
        self._ov.save_model(self.core.read_model(model), out, compress_to_fp16=False)
        return out


def remove(xml: pathlib.Path) -> None:
    """Unlinks a model; a process that still maps the old .bin keeps its bytes."""
    for path in (xml, xml.with_suffix(".bin")):
        path.unlink(missing_ok=True)
