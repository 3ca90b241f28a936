#!/usr/bin/env python3
"""Checks `ovpress compare` against OpenVINO's own decompression.

For every mode over the models of tests/data: compress, let OpenVINO's CPU plugin
run each decompression subgraph of the result (in f32), put the values in its
place as a plain constant, save that model, and then
- `ovpress compare FOLDED COMPRESSED` must find every weight equal, bit for bit;
- `ovpress compare ORIGINAL COMPRESSED --json` must give the figures that NumPy
  computes from the folded constants.
Also: the command's exit codes and page, scripts/quality.py, and that extended
AWQ keeps the function of a model.

    tests/quality/run.py --ovpress BUILD/client/cli/ovpress
The last line is "N passed, N failed"; the exit status is 0 if none failed.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import openvino as ov
import openvino.opset13 as opset
from openvino.passes import ConstantFolding, Manager

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODELS = ROOT / "tests" / "data" / "models"

# Every value of --mode, with what makes it apply to models of this size; some
# with other group sizes, so that scales of all layouts occur.
OPTIONS = [
    ["int8_asym"],
    ["int8_sym"],
    ["int4_asym", "--group-size", "32"],
    ["int4_asym", "--group-size", "-1", "--all-layers"],
    ["int4_sym", "--group-size", "32"],
    ["int4_sym", "--group-size", "16", "--ratio", "0.5"],
    ["int3_sym", "--group-size", "32"],
    ["int2_sym", "--group-size", "32"],
    ["nf4", "--group-size", "32"],
    ["nf4", "--group-size", "-1"],
    ["fp4", "--group-size", "32"],
    ["fp8_e4m3", "--group-size", "32"],
    ["mxfp4"],
    ["mxfp8_e4m3"],
    ["nvfp4"],
    ["cb4"],
    ["cb4", "--group-size", "32"],
    ["codebook", "--group-size", "32"],
]
# 20 entries: indices of 8 bits, beside the 4 bits of cb4.
CODEBOOK = [round(-1 + i * 0.1, 1) for i in range(20)] + [1.0]

# ovpress and NumPy add the same f64 numbers in different orders. Of n terms of
# one sign either order is off by at most n * 2^-53 of the sum: 1.5e-11 for the
# largest weight here (131,072 elements). Square root and logarithm only shrink
# it; 10 / ln(10) times two of them stays below this.
RELATIVE_TOLERANCE = 2e-10


class Counter:
    def __init__(self) -> None:
        self.passed = 0
        self.failed = 0

    def check(self, name: str, problems: list[str]) -> None:
        if problems:
            self.failed += 1
            print(f"FAILED {name}")
            for problem in problems[:8]:
                print(f"    {problem}")
        else:
            self.passed += 1


def run(command: list, expect: int = 0) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode != expect:
        raise RuntimeError(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stderr.strip()}")
    return done.stdout


def fold(core: ov.Core, compressed: pathlib.Path, folded: pathlib.Path) -> int:
    """Saves the model with its decompression done by OpenVINO; how many weights
    that were."""
    model = core.read_model(compressed)
    varying = set()  # names of what depends on inputs or states
    roots = {}  # what such an operation reads, computed from constants
    for node in model.get_ordered_ops():
        sources = [node.input_value(i).get_node() for i in range(node.get_input_size())]
        if node.get_type_name() in ("Parameter", "ReadValue") or any(s.get_friendly_name() in varying for s in sources):
            varying.add(node.get_friendly_name())
    for node in model.get_ordered_ops():
        if node.get_friendly_name() not in varying:
            continue
        for port in range(node.get_input_size()):
            source = node.input_value(port)
            root = source.get_node()
            if root.get_friendly_name() in varying or root.get_type_name() == "Constant":
                continue
            if source.get_element_type() in (ov.Type.f32, ov.Type.f16):
                roots.setdefault(root.get_friendly_name(), (root, []))[1].append((node, port))
    outputs = [opset.result(opset.convert(root, "f32")) for root, _ in roots.values()]
    compiled = core.compile_model(ov.Model(outputs, [], "decompression"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    values = compiled({})
    for index, (name, (_, readers)) in enumerate(roots.items()):
        constant = opset.constant(np.array(values[index]))
        constant.set_friendly_name(f"{name}/folded")
        for reader, port in readers:
            reader.input(port).replace_source_output(constant.output(0))
    model.validate_nodes_and_infer_types()
    ov.save_model(model, folded, compress_to_fp16=False)
    return sum("/fq_weights_" in name for name in roots)


def constants_by_reader(core: ov.Core, xml: pathlib.Path) -> dict[tuple[str, int], np.ndarray]:
    """What (operation, input) reads from a constant, Converts folded away."""
    model = core.read_model(xml)
    manager = Manager()
    manager.register_pass(ConstantFolding())
    manager.run_passes(model)
    out = {}
    for node in model.get_ops():
        for port in range(node.get_input_size()):
            source = node.input_value(port).get_node()
            if source.get_type_name() == "Constant":
                out[(node.get_friendly_name(), port)] = source.data
    return out


def close(actual: float, expected: float) -> bool:
    return math.isclose(actual, expected, rel_tol=RELATIVE_TOLERANCE, abs_tol=RELATIVE_TOLERANCE)


def figures(w: np.ndarray, d: np.ndarray) -> dict[str, float | None]:
    difference = (d.astype(np.float32) - w.astype(np.float32)).astype(np.float64)
    w = w.astype(np.float64).ravel()
    d = d.astype(np.float64).ravel()
    error, signal, signal_b = (difference**2).sum(), (w**2).sum(), (d**2).sum()
    norms = math.sqrt(signal) * math.sqrt(signal_b)
    return {
        "relative_error": math.sqrt(error / signal) if error else 0.0,
        "max_abs_error": float(np.abs(difference).max()),
        "sqnr_db": 10 * math.log10(signal / error) if error else None,
        "cosine": float(w @ d) / norms if norms else 1.0,
    }


def check_case(core: ov.Core, ovpress: str, model: pathlib.Path, options: list[str], folder: pathlib.Path, counter: Counter) -> None:
    name = f"{model.name} {' '.join(options)}"
    source = model / "openvino_model.xml"
    compressed, folded = folder / "compressed.xml", folder / "folded.xml"
    flags = ["--mode", *options, "--group-size-fallback", "ignore"]
    if model.name == "resnet" and options[0] in ("fp4", "fp8_e4m3", "mxfp4", "mxfp8_e4m3"):
        flags += ["--ignored-type", "Convolution"]  # these refuse its three reduction axes
    if options[0] == "codebook":
        table = folder / "codebook.json"
        table.write_text(json.dumps(CODEBOOK))
        flags += ["--codebook", table]
    run([ovpress, "compress", source, "-o", compressed, "--quiet", *flags])
    folded_weights = fold(core, compressed, folded)

    # 1. Bit for bit what OpenVINO decompresses.
    report = json.loads(run([ovpress, "compare", folded, compressed, "--json", "--quiet"]))
    problems = [f"{w['name_b']}: largest difference {w['max_abs_error']}" for w in report["weights"] if not w["equal"]]
    # Each compressed weight was compared with a plain constant.
    compared = sum(w["type_a"] != w["type_b"] and w["type_a"] in ("f32", "f16") for w in report["weights"])
    if compared < folded_weights or compared == 0:
        problems.append(f"{compared} of {folded_weights} compressed weights were compared")
    for key in ("shape_mismatches", "only_in_a", "only_in_b"):
        problems += [f"{key}: {w['name']}" for w in report[key]]
    counter.check(f"{name}: equals OpenVINO's decompression", problems)

    # 2. The figures, from OpenVINO's constants by NumPy.
    report = json.loads(run([ovpress, "compare", source, compressed, "--json", "--quiet"]))
    before = constants_by_reader(core, source)
    after = constants_by_reader(core, folded)
    port_of = {}
    for reader, port in before:
        port_of.setdefault(reader, []).append(port)
    problems = []
    compared = 0
    for weight in report["weights"]:
        reader = weight["reader"]
        pairs = [
            (before[(reader, port)], after[(reader, port)])
            for port in port_of.get(reader, [])
            if (reader, port) in after and list(before[(reader, port)].shape) == weight["shape"]
        ]
        if len(pairs) != 1:
            continue  # a reader of two equal shapes; the first check covers it
        compared += 1
        expected = figures(*pairs[0])
        for key, value in expected.items():
            actual = weight[key]
            if (actual is None) != (value is None) or (value is not None and not close(actual, value)):
                problems.append(f"{weight['name']}: {key} is {actual}, NumPy has {value}")
    wanted = sum(w["is_weight"] for w in report["weights"])
    if compared < wanted:
        problems.append(f"only {compared} of {len(report['weights'])} could be computed, {wanted} weights among them")
    counter.check(f"{name}: figures equal NumPy's", problems)


def check_extended_awq(ovpress: str, folder: pathlib.Path, counter: Counter) -> None:
    """Extended AWQ keeps the model's function.

    In groups of one weight, int4_sym stores sign and magnitude: w becomes 8/8
    or 7/8 of itself, whatever its scale. Rescaling thus commutes with it, and
    the two results differ by roundings of scales and factors to f16 only, at
    most some 2^-10 of each weight. The divergence of the outputs grows with the
    square: four bits (2^-4) give 3e-4 to 7e-4 on these models, so 2^-10 gives
    less than 1e-6."""
    for name in ("llama", "llama_tied", "qwen2", "gpt2"):
        source = MODELS / name / "openvino_model.xml"
        results = []
        for flags in ([], ["--awq", "--awq-extended"]):
            target = folder / f"awq{len(flags)}.xml"
            run([ovpress, "compress", source, "-o", target, "--quiet", "--mode", "int4_sym", "--group-size", "1", "--backup-mode", "none", *flags])
            results.append(target)
        plan = run([ovpress, "compress", source, "--dry-run", "--mode", "int4_sym", "--group-size", "1", "--backup-mode", "none", *flags])
        problems = [] if "awq:" in plan else ["no weight was rescaled"]
        figures = json.loads(run([sys.executable, ROOT / "scripts" / "quality.py", *results, "--random", "2", "--window", "64", "--json"]))
        if not figures["kl_max"] < 1e-6:
            problems.append(f"the outputs' KL divergence is {figures['kl_max']}")
        if results[0].with_suffix(".bin").read_bytes() == results[1].with_suffix(".bin").read_bytes():
            problems.append("AWQ changed nothing")
        counter.check(f"{name}: extended AWQ keeps the function", problems)


def check_quality_script(ovpress: str, folder: pathlib.Path, counter: Counter) -> None:
    """scripts/quality.py: a model against itself, and its exit codes."""
    script = ROOT / "scripts" / "quality.py"
    llama, gpt2 = (MODELS / name / "openvino_model.xml" for name in ("llama", "gpt2"))
    tokens = folder / "tokens.json"
    tokens.write_text(json.dumps([(7 * i) % 500 for i in range(100)]))
    same = json.loads(run([sys.executable, script, llama, llama, "--tokens", tokens, "--window", "40", "--json"]))
    problems = [] if same["kl_max"] == 0 and same["same_choice"] == 1 else [f"a model differs from itself: {same}"]
    if same["positions"] != 100 or same["perplexity_before"] != same["perplexity_after"]:
        problems.append(f"unexpected figures: {same}")
    counter.check("quality.py: a model against itself", problems)
    run([ovpress, "compress", gpt2, "-o", folder / "q.xml", "--quiet", "--mode", "int2_sym", "--group-size", "32"])
    text = run([sys.executable, script, gpt2, folder / "q.xml", "--text", script, "--bytes", "--limit", "64", "--window", "32", "--max-kl", "1e-9"], expect=1)
    counter.check("quality.py: --max-kl", [] if "perplexity" in text else ["no perplexity was printed"])
    run([sys.executable, script, llama, llama, "--text", script], expect=2)
    counter.check("quality.py: wrong usage", [])


def check_command(ovpress: str, folder: pathlib.Path, counter: Counter) -> None:
    """Exit codes, the page, and what does not fit together."""
    llama = MODELS / "llama" / "openvino_model.xml"
    compressed, page = folder / "compressed.xml", folder / "page.html"
    run([ovpress, "compress", llama, "-o", compressed, "--quiet", "--mode", "int4_sym", "--group-size", "32"])

    def attempt(name: str, expect: int, command: list, *needles: str) -> None:
        done = subprocess.run([ovpress, "compare", *map(str, command)], capture_output=True, text=True, check=False)
        problems = [] if done.returncode == expect else [f"exit {done.returncode}, expected {expect}: {done.stderr.strip()}"]
        problems += [f"{needle!r} is not in the output" for needle in needles if needle not in done.stdout + done.stderr]
        counter.check(name, problems)

    attempt("a limit that holds", 0, [llama, compressed, "--min-sqnr", "15"])
    attempt("a limit that does not", 1, [llama, compressed, "--min-sqnr", "30"], "weights are below 30 dB")
    attempt("an unknown flag", 2, [llama, compressed, "--min-snr", "30"])
    attempt("a missing file", 1, [llama, folder / "nothing.xml"], "nothing.xml")
    attempt("two strangers", 1, [llama, MODELS / "resnet" / "openvino_model.xml", "--min-sqnr", "1"])
    attempt("worst weights", 0, [llama, compressed, "--worst", "2"], "the worst 2 of 17")
    run([ovpress, "compare", llama, compressed, "--html", page])
    text = page.read_text()
    problems = [f"{needle!r} is missing" for needle in ("<svg", "self.model.embed_tokens.weight", "</html>") if needle not in text]
    problems += [f"{needle!r} points outside" for needle in ("http:", "https:", "src=", "url(", "@import") if needle in text]
    counter.check("a page that needs nothing from outside", problems)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ovpress", required=True, help="the command to test")
    parser.add_argument("--filter", default="", help="only cases whose name contains this")
    arguments = parser.parse_args()
    core = ov.Core()
    counter = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for model in sorted(path for path in MODELS.iterdir() if path.is_dir()):
            for options in OPTIONS:
                if arguments.filter in f"{model.name} {' '.join(options)}":
                    try:
                        check_case(core, arguments.ovpress, model, options, folder, counter)
                    except (RuntimeError, KeyError, ValueError) as error:
                        counter.check(f"{model.name} {' '.join(options)}", [str(error)])
        if not arguments.filter:
            check_command(arguments.ovpress, folder, counter)
            check_extended_awq(arguments.ovpress, folder, counter)
            check_quality_script(arguments.ovpress, folder, counter)
    print(f"{counter.passed} passed, {counter.failed} failed")
    sys.exit(counter.failed > 0)


if __name__ == "__main__":
    main()
