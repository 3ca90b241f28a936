"""Runs two models on the CPU with the same inputs and compares every bit."""

from __future__ import annotations

import pathlib
import pickle
import subprocess
import sys
import tempfile
import zlib

import numpy as np
import openvino as ov

# Only for exactness: one stream, one thread, no lower precision.
CONFIG = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
# Enough for a sequence, small enough to be quick.
DYNAMIC_SIZE = 4


def _input(port: ov.Output, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = []
    for axis, dim in enumerate(port.get_partial_shape()):
        if dim.is_static:
            shape.append(dim.get_length())
        else:
            # Images want sizes that survive downsampling; sequences do not.
            size = 64 if len(port.get_partial_shape()) == 4 and axis >= 2 else 1 if axis == 0 else DYNAMIC_SIZE
            if len(port.get_partial_shape()) == 4 and axis == 1:
                size = 3
            shape.append(min(max(size, dim.get_min_length()), dim.get_max_length() if dim.get_max_length() > 0 else size))
    kind = port.get_element_type()
    if kind == ov.Type.boolean:
        return rng.integers(0, 2, shape).astype(bool)
    if kind.is_integral():
        name = port.get_any_name() if port.get_names() else ""
        if "beam" in name:
            return np.zeros(shape, kind.to_dtype())
        if "mask" in name:
            return np.ones(shape, kind.to_dtype())
        return rng.integers(0, 3, shape).astype(kind.to_dtype())
    return rng.standard_normal(shape).astype(kind.to_dtype())


def run(core: ov.Core, xml) -> list[np.ndarray]:
    model = core.read_model(xml)
    # The CPU plugin crashes on results of such types.
    if any(port.get_element_type().bitwidth < 16 for port in model.outputs):
        raise ValueError("results of less than 16 bits are not run")
    compiled = core.compile_model(model, "CPU", CONFIG)
    inputs = [_input(port, zlib.crc32(str(i).encode())) for i, port in enumerate(compiled.inputs)]
    request = compiled.create_infer_request()
    outputs = []
    for _ in range(2):  # twice, so that states take part
        request.infer(inputs)
        outputs += [np.array(request.get_output_tensor(i).data) for i in range(len(compiled.outputs))]
    return outputs


def differences(expected: list[np.ndarray], actual: list[np.ndarray]) -> list[str]:
    out = []
    for i, (a, b) in enumerate(zip(expected, actual)):
        if a.shape != b.shape or a.dtype != b.dtype:
            out.append(f"output {i} is {b.dtype}{b.shape}, with NNCF {a.dtype}{a.shape}")
        elif a.dtype.kind in "US" or a.dtype == object:
            if not np.array_equal(a, b):
                out.append(f"output {i} differs")
        elif a.dtype.kind == "f" and np.array_equal(a, b, equal_nan=True):
            pass  # which NaN an operation gives is not defined
        elif np.ascontiguousarray(a).tobytes() != np.ascontiguousarray(b).tobytes():
            with np.errstate(all="ignore"):
                gaps = np.abs(a.astype(np.float64) - b.astype(np.float64))
                worst = np.max(gaps[~np.isnan(gaps)], initial=0)
            out.append(f"output {i} differs, at most by {worst:g}")
    return out


# A difference is believed only if it comes back: so many further runs of each
# model, each in a process of its own.
CONFIRMING_RUNS = 4


def _run_apart(xml) -> list[np.ndarray] | None:
    """The outputs of a run in a fresh process; None if that process fails."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "outputs.pickle"
        done = subprocess.run([sys.executable, __file__, str(xml), str(path)], capture_output=True, timeout=300, check=False)
        if done.returncode != 0 or not path.exists():
            return None
        return pickle.loads(path.read_bytes())


def is_reproducible(theirs, ours) -> bool:
    """False if the plugin itself is the cause of a difference: some run of our
    model equals some run of the reference, or one of the two disagrees with
    itself. On some graphs the plugin reads memory that nobody wrote."""
    expected, actual = [], []
    for _ in range(CONFIRMING_RUNS):
        for xml, results in ((theirs, expected), (ours, actual)):
            outputs = _run_apart(xml)
            if outputs is None:
                continue
            if results and differences(results[0], outputs):
                return False
            results.append(outputs)
        if any(not differences(a, b) for a in expected for b in actual):
            return False
    return True


def compare(core: ov.Core, theirs, ours) -> list[str] | None:
    """Differences; None if the reference itself does not run on the CPU, or
    the plugin gives other results when a model runs again."""
    try:
        expected = run(core, theirs)
        if differences(expected, run(core, theirs)):
            return None
    except Exception:
        return None
    try:
        actual = run(core, ours)
    except Exception as error:
        return [f"inference fails: {str(error).strip().splitlines()[-1]}"]
    found = differences(expected, actual)
    return None if found and not is_reproducible(theirs, ours) else found


if __name__ == "__main__":
    pathlib.Path(sys.argv[2]).write_bytes(pickle.dumps(run(ov.Core(), sys.argv[1])))
