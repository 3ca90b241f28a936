#!/usr/bin/env python3
"""NNCF's time and memory on a model: the third figure beside engine_bench.

  nncf_time.py MODEL.xml --mode int4_sym --group-size 128

Counts reading, compressing and saving; imports do not count.
"""
import argparse
import logging
import resource
import time

import nncf
import openvino as ov

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--mode", default="int8_asym")
parser.add_argument("--group-size", type=int)
parser.add_argument("--ratio", type=float)
parser.add_argument("--out", default="nncf-bench.xml")
arguments = parser.parse_args()
nncf.set_log_level(logging.ERROR)
start = time.monotonic()
model = ov.Core().read_model(arguments.model)
model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode(arguments.mode), group_size=arguments.group_size, ratio=arguments.ratio)
ov.save_model(model, arguments.out, compress_to_fp16=False)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(f"NNCF {arguments.mode}: {time.monotonic() - start:.2f} s, peak {peak // 1024} MiB")
