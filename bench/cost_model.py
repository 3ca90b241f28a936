#!/usr/bin/env python3
"""What a cluster needs of its database, object store and network: computed from
what small runs took.

  bench/cost_model.py              100 servers, 1,000 models of 70 GB
  bench/cost_model.py --check      the model against the measured runs
  bench/cost_model.py --help       rates and prices to fill in

Requests follow from the sizes of parts and blocks; statements per job are fitted
to the two smaller of the measured runs, so the largest one is a check."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys

MIB = 1 << 20
BLOCK = 8 * MIB  # a GET


def part_bytes(size: float) -> int:
    """Of a multipart upload: PartBytesFor() in s3_blob_store.

    >>> part_bytes(1e9) // MIB, part_bytes(70e9) // MIB
    (8, 64)
    """
    return int(min(max(8 * MIB, math.ceil(size / 256 / MIB) * MIB), 64 * MIB))


@dataclasses.dataclass(frozen=True)
class Need:
    puts: float  # PUT and POST
    gets: float
    sent: float  # bytes to the object store
    received: float
    statements: float


# Of each job beside those of its parts, and of each part: the line through the
# runs of 167 and 369 MB, where 20 and 44 parts were uploaded.
JOB_STATEMENTS = 142
PART_STATEMENTS = 2.7
# Looks for work, renewals: of each server, without work.
IDLE_STATEMENTS_PER_SECOND = 1.4
# The .xml, the report, the object that names the database; beginning and
# completing an upload.
SMALL_OBJECTS = 4
MULTIPART = 2


def per_job(model: float, result: float, by_address: bool = False) -> Need:
    """Of one job: uploaded, compressed and downloaded, or by address.

    >>> need = per_job(369e6, 111e6)
    >>> need.puts, need.gets, round(need.sent / 1e6)
    (66, 63, 480)
    >>> per_job(70e9, 21e9, by_address=True).gets
    8350
    """
    up = math.ceil(model / part_bytes(model))
    out = math.ceil(result / part_bytes(result))
    reads = math.ceil(model / BLOCK)
    if by_address:
        # Read where it lies; the result is copied inside the store, part by part.
        return Need(2 * (out + MULTIPART) + SMALL_OBJECTS, reads + 5, result, model, JOB_STATEMENTS)
    return Need(up + out + 2 * MULTIPART + SMALL_OBJECTS, reads + math.ceil(result / BLOCK) + 5,
                model + result, model + result, JOB_STATEMENTS + PART_STATEMENTS * up)


# tests/cluster/object_store.py --measure --megabytes 88, 300, 700: sizes and what was counted.
MEASURED = [
    (167e6, 59e6, Need(36, 32, 225.7e6, 225.7e6, 196)),
    (369e6, 111e6, Need(67, 63, 480.3e6, 480.3e6, 261)),
    (774e6, 215e6, Need(127, 123, 989.6e6, 989.6e6, 392)),
]


def check() -> bool:
    good = True
    print("| model | figure | computed | measured | ratio |\n|---|---|---|---|---|")
    for model, result, measured in MEASURED:
        computed = per_job(model, result)
        for field in dataclasses.fields(Need):
            ours, theirs = getattr(computed, field.name), getattr(measured, field.name)
            good = good and 0.9 <= ours / theirs <= 1.1
            print(f"| {model / 1e6:.0f} MB | {field.name} | {ours:.4g} | {theirs:.4g} | {ours / theirs:.2f} |")
    return good


def forecast(a: argparse.Namespace) -> None:
    model, result = a.gigabytes * 1e9, a.gigabytes * 1e9 * a.result_share
    need = per_job(model, result, a.by_address)
    network = max(need.sent, need.received) * (1 if a.by_address else 2)  # to the store, and from and to clients
    seconds = max(model / a.compute / 1e9, network / a.network / 1e9)
    total = seconds * math.ceil(a.models / a.servers)
    jobs = a.models / total
    print(f"{a.models} models of {a.gigabytes:g} GB on {a.servers} servers, results of {result / 1e9:.0f} GB"
          f"{', by address' if a.by_address else ', uploaded and downloaded'}")
    rows = [
        ("a job on one server", f"{seconds:.0f} s, limited by {'compute' if seconds > network / a.network / 1e9 else 'its network'}"),
        ("all", f"{total / 60:.0f} min, {jobs:.2f} jobs/s"),
        ("database", f"{jobs * need.statements + a.servers * IDLE_STATEMENTS_PER_SECOND:.0f} statements/s, "
                     f"{IDLE_STATEMENTS_PER_SECOND * a.servers:.0f} of them without work"),
        ("object store, a job", f"{need.puts:.0f} PUT or POST, {need.gets:.0f} GET"),
        ("object store, all", f"{a.models * need.puts / 1e6:.2f} million PUT or POST, {a.models * need.gets / 1e6:.1f} million GET, "
                              f"{a.models * need.sent / 1e12:.0f} TB in, {a.models * need.received / 1e12:.0f} TB out"),
        ("object store, rate", f"{jobs * (need.puts + need.gets):.0f} requests/s, {jobs * need.sent / 1e9:.1f} GB/s in, {jobs * need.received / 1e9:.1f} GB/s out"),
        ("space", f"{a.models * (result if a.by_address else model + result) / 1e12:.0f} TB if nothing is evicted"),
        ("cost", f"{a.models * (need.puts * a.price_put + need.gets * a.price_get) + a.servers * total / 3600 * a.price_hour:.4g} units"),
    ]
    print("| what | how much |\n|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--servers", type=int, default=100)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--gigabytes", type=float, default=70)
    parser.add_argument("--result-share", type=float, default=0.3, help="of the model's size")
    parser.add_argument("--by-address", action="store_true", help="models lie in the object store already")
    parser.add_argument("--compute", type=float, default=1.0, help="GB/s of weights that one server compresses; yours: bench/table.py")
    parser.add_argument("--network", type=float, default=1.25, help="GB/s of one server, each direction")
    parser.add_argument("--price-put", type=float, default=0, help="of one PUT or POST")
    parser.add_argument("--price-get", type=float, default=0)
    parser.add_argument("--price-hour", type=float, default=1, help="of one server")
    arguments = parser.parse_args()
    if arguments.check:
        return 0 if check() else 1
    forecast(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
