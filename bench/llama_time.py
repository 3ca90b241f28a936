#!/usr/bin/env python3
"""llama.cpp's quantizer on a model with the shapes of make_ir's: a figure beside engine_bench's.

  pip install llama-cpp-python==0.3.36     # builds llama.cpp from source: a compiler, CMake and some minutes
  llama_time.py --work DIR [--layers 18]

The formats are not ours (Q8_0: 8 bits, Q4_0: 4 bits, groups of 32 with an f16 scale each), the work is of the same kind: read f16 weights,
write codes and scales. The GGUF of random weights is written first and stays. Each type runs in a process of its own, the second of two
runs counts (the first warms the page cache up), and the output's size is compared with what its tensors' types say.
"""
import argparse
import json
import os
import pathlib
import struct
import subprocess
import sys
import time

import numpy as np

HIDDEN, INTERMEDIATE, VOCABULARY, HEAD = 2048, 5632, 32000, 64
ALIGNMENT = 32
F32, F16 = 0, 1
# Of ggml: bytes and weights of a block of each type that comes out.
BLOCKS = {F32: (4, 1), F16: (2, 1), 2: (18, 32), 8: (34, 32), 14: (210, 256)}
TYPES = {"Q8_0": 7, "Q4_0": 2}  # llama_ftype


def padded(size):
    return (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


def text(value):
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def tensors_of(layers):
    """Name, shape (fastest first) and type of each."""
    yield "token_embd.weight", (HIDDEN, VOCABULARY), F16
    for layer in range(layers):
        block = f"blk.{layer}."
        yield block + "attn_norm.weight", (HIDDEN,), F32
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield block + name + ".weight", (HIDDEN, HIDDEN), F16
        yield block + "ffn_norm.weight", (HIDDEN,), F32
        yield block + "ffn_gate.weight", (HIDDEN, INTERMEDIATE), F16
        yield block + "ffn_up.weight", (HIDDEN, INTERMEDIATE), F16
        yield block + "ffn_down.weight", (INTERMEDIATE, HIDDEN), F16
    yield "output_norm.weight", (HIDDEN,), F32
    yield "output.weight", (HIDDEN, VOCABULARY), F16


def bytes_of(shape, kind):
    size, weights = BLOCKS[kind]
    return int(np.prod(shape)) // weights * size


def write_model(path, layers):
    tensors = list(tensors_of(layers))
    strings = {"general.architecture": "llama", "general.name": "synthetic"}
    integers = {
        "llama.context_length": 2048, "llama.embedding_length": HIDDEN, "llama.block_count": layers, "llama.feed_forward_length": INTERMEDIATE,
        "llama.attention.head_count": HIDDEN // HEAD, "llama.attention.head_count_kv": HIDDEN // HEAD, "llama.rope.dimension_count": HEAD,
        "llama.vocab_size": VOCABULARY, "general.file_type": 1, "general.alignment": ALIGNMENT,
    }
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(strings) + len(integers) + 1)
    for key, value in strings.items():
        header += text(key) + struct.pack("<I", 8) + text(value)
    for key, value in integers.items():
        header += text(key) + struct.pack("<II", 4, value)
    header += text("llama.attention.layer_norm_rms_epsilon") + struct.pack("<If", 6, 1e-5)
    offset = 0
    for name, shape, kind in tensors:
        header += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        offset += padded(bytes_of(shape, kind))
    random = np.random.default_rng(1)
    part = path.with_suffix(".part")
    with open(part, "wb") as file:
        file.write(header.ljust(padded(len(header)), b"\0"))
        for _, shape, kind in tensors:
            values = random.standard_normal(int(np.prod(shape)), dtype=np.float32) * np.float32(0.02)
            data = values.astype(np.float16 if kind == F16 else np.float32).tobytes()
            file.write(data.ljust(padded(len(data)), b"\0"))
    part.rename(path)


def read_header(path):
    """The types and shapes of a GGUF file's tensors."""
    with open(path, "rb") as file:
        def take(layout):
            return struct.unpack("<" + layout, file.read(struct.calcsize("<" + layout)))

        def take_text():
            return file.read(take("Q")[0])

        def skip(kind):
            if kind == 8:
                take_text()
            elif kind == 9:
                inner, count = take("IQ")
                for _ in range(count):
                    skip(inner)
            else:
                file.read({0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}[kind])

        if file.read(4) != b"GGUF":
            raise ValueError(f"{path} is no GGUF file")
        _, tensors, keys = take("IQQ")
        for _ in range(keys):
            take_text()
            skip(take("I")[0])
        found = []
        for _ in range(tensors):
            take_text()
            rank = take("I")[0]
            shape = take(f"{rank}Q")
            kind, _ = take("IQ")
            found.append((shape, kind))
        return found, file.tell()


def quantize(source, target, kind, threads):
    import ctypes

    import llama_cpp

    quiet = llama_cpp.llama_log_callback(lambda level, message, data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = TYPES[kind]
    parameters.nthread = threads
    start = time.monotonic()
    code = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(parameters))
    if code != 0:
        sys.exit(f"llama_time.py: llama_model_quantize failed with {code}")
    print(json.dumps({"seconds": time.monotonic() - start, "version": llama_cpp.__version__}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True)
    parser.add_argument("--layers", type=int, default=18)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--one", choices=TYPES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    source = pathlib.Path(arguments.work) / f"llama-{arguments.layers}.gguf"
    target = pathlib.Path(arguments.work) / "llama-out.gguf"
    if arguments.one:
        quantize(source, target, arguments.one, arguments.threads)
        return
    if not source.exists():
        write_model(source, arguments.layers)
    runs = []
    for kind in TYPES:
        for _ in range(2):
            process = subprocess.Popen([sys.executable, __file__, "--work", arguments.work, "--layers", str(arguments.layers), "--threads", str(arguments.threads), "--one", kind],
                                       stdout=subprocess.PIPE, text=True)
            report = process.stdout.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode != 0:
                sys.exit(f"llama_time.py: {kind}: exit code {process.returncode}")
        report = json.loads(report)
        tensors, end = read_header(target)
        expected = padded(end) + sum(padded(bytes_of(shape, one)) for shape, one in tensors)
        size = target.stat().st_size
        if size != expected or all(one in (F32, F16) for _, one in tensors):
            sys.exit(f"llama_time.py: {kind}: {size} bytes where the tensors' types say {expected}")
        runs.append({"type": kind, "seconds": report["seconds"], "peak_mib": usage.ru_maxrss // 1024, "output_bytes": size})
        target.unlink()
    print(json.dumps({"version": report["version"], "input_bytes": source.stat().st_size, "runs": runs}, indent=2))


if __name__ == "__main__":
    main()
