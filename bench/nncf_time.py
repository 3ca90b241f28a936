#!/usr/bin/env python3
"""NNCF's time and memory on a model: the third figure beside engine_bench.

  nncf_time.py MODEL.xml --mode int4_sym --group-size 128

Counts reading, compressing and saving; imports do not count. With --equal-to, the constants of the result are compared with those of that
model afterwards, by name.
"""
import argparse
import json
import logging
import resource
import sys
import time

import nncf
import openvino as ov


def constants_of(path):
    """The constants of an IR by name."""
    return {op.get_friendly_name(): op for op in ov.Core().read_model(path).get_ops() if op.get_type_name() == "Constant"}


def differing(path, other):
    """How many constants have one name in both, and the names of those whose types, shapes or bytes differ."""
    ours, theirs = constants_of(path), constants_of(other)
    names = []
    compared = 0
    for name, op in theirs.items():
        same = ours.get(name)
        if same is None:
            continue
        compared += 1
        if same.get_element_type() != op.get_element_type() or same.get_output_shape(0) != op.get_output_shape(0) or not (same.data == op.data).all():
            names.append(name)
    return compared, names


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--mode", default="int8_asym")
    parser.add_argument("--group-size", type=int)
    parser.add_argument("--ratio", type=float)
    parser.add_argument("--out", default="nncf-bench.xml")
    parser.add_argument("--equal-to", help="an .xml whose constants must be the same")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    nncf.set_log_level(logging.ERROR)
    start = time.monotonic()
    model = ov.Core().read_model(arguments.model)
    # NNCF shows progress on stdout; a reader of --json wants none of it.
    stdout, sys.stdout = sys.stdout, sys.stderr
    model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode(arguments.mode), group_size=arguments.group_size, ratio=arguments.ratio)
    sys.stdout = stdout
    ov.save_model(model, arguments.out, compress_to_fp16=False)
    seconds = time.monotonic() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    del model
    report = {"version": nncf.__version__, "mode": arguments.mode, "seconds": seconds, "peak_mib": peak}
    if arguments.equal_to:
        compared, names = differing(arguments.out, arguments.equal_to)
        if compared == 0:
            sys.exit("nncf_time.py: no constant has the same name in both models")
        report |= {"constants": compared, "constants_that_differ": names}
    print(json.dumps(report) if arguments.json else f"NNCF {arguments.mode}: {seconds:.2f} s, peak {peak} MiB")


if __name__ == "__main__":
    main()
