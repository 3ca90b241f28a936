#!/usr/bin/env python3
"""What it costs and gains to share one job out among servers, for docs/scaling.md.

  .venv/bin/python bench/sharing.py --build build/ci --work DIR [--layers 7] [--rounds 3] [--modes codebook int4_sym]

One server alone, the same with sharing on (what cutting the job and reading the output again cost), and two servers that share it; one
thread each, all on this machine, on a PostgreSQL and a SeaweedFS that share it with them. The variants take turns; each has run once
before, so what it reads lies in its cache. Fails if the outputs are not the same. DIR needs about ten times the model."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import tempfile
import time
import types
import uuid

ROOT = pathlib.Path(__file__).resolve().parents[1]
CODEBOOK = json.dumps([(i - 127) / 1000 for i in range(256)]).encode()
MODES: dict[str, dict] = {
    "codebook": {"mode": "codebook", "codebook": CODEBOOK, "group_size": 64},
    "int4_sym": {"mode": "int4_sym", "group_size": 64},
}
SHARE = "--share-jobs-above=512MiB"
VARIANTS = (("one server, not shared", 1, "--share-jobs-above=0"), ("one server, shared", 1, SHARE), ("two servers, shared", 2, SHARE))


def fixtures() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("cluster", ROOT / "tests/cluster/run.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def upload(client, data: bytes, piece: int = 128 << 20):
    """In several calls, for each has a deadline."""
    name = f"uploads/{uuid.uuid4()}/blobs/{hashlib.sha256(data).hexdigest()}/{len(data)}"
    for begin in range(0, len(data), piece):
        end = min(begin + piece, len(data))
        client.write(name, data[:end], start=begin, finish=end == len(data))
    return client.blob(data)


def run(client, model, options: dict) -> tuple[float, str]:
    """Seconds from the call to the end, and the digest of the output."""
    begin = time.monotonic()
    job = client.submit(model, options=options, ignore_result_cache=True)
    digest = client.result(client.wait(job, seconds=900)).model.bin.sha256
    return time.monotonic() - begin, digest


def measure(cluster: types.ModuleType, context, model: pathlib.Path, modes: list[str], rounds: int) -> None:
    xml, data = model.read_bytes(), model.with_suffix(".bin").read_bytes()
    print(f"{len(data) / 1e9:.2f} GB of weights, {rounds} rounds, load {os.getloadavg()[0]:.1f}", flush=True)
    clusters = [context.cluster(count=count, flags=[flag]) for _, count, flag in VARIANTS]
    try:
        clients = [each.__enter__()[0].client() for each in clusters]
        models = [client.pb.ModelBlobs(xml=client.upload(xml), bin=upload(client, data)) for client in clients]
        print("| mode | servers | seconds, median | of all | to one alone |\n|---|---|---|---|---|")
        for mode in modes:
            ways = list(zip(clients, models))
            digests = {run(client, blobs, MODES[mode])[1] for client, blobs in ways}
            seconds: list[list[float]] = [[] for _ in ways]
            for _ in range(rounds):
                for way, (client, blobs) in enumerate(ways):
                    took, digest = run(client, blobs, MODES[mode])
                    seconds[way].append(took)
                    digests.add(digest)
            assert len(digests) == 1, f"{mode}: the outputs differ: {digests}"
            alone = statistics.median(seconds[0])
            for (name, _, _), times in zip(VARIANTS, seconds):
                median = statistics.median(times)
                print(f"| {mode} | {name} | {median:.1f} | {', '.join(f'{t:.1f}' for t in times)} | {median / alone:.2f} |", flush=True)
            parts = [cluster.parts_done(replica) for replica in clusters[2].replicas]
            assert min(parts) > 0, f"one of the two did not help: {parts}"
    finally:
        for each in clusters:
            each.__exit__()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--layers", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    arguments = parser.parse_args()
    cluster = fixtures()
    work = pathlib.Path(tempfile.mkdtemp(prefix="sharing-", dir=arguments.work))
    # PostgreSQL's own user must reach its folder in it.
    work.chmod(0o755)
    stores: list = []
    try:
        (work / "stubs").mkdir()
        cluster.harness.generate_stubs(work / "stubs")
        subprocess.run([arguments.build / "bench/make_ir", work / "m", f"--layers={arguments.layers}"], check=True, stdout=subprocess.DEVNULL)
        cluster.Context.postgres = cluster.Postgres(work / "postgres")
        stores.append(cluster.Context.postgres)
        cluster.Context.seaweed = cluster.Seaweed(work / "seaweed")
        stores.append(cluster.Context.seaweed)
        measure(cluster, cluster.Context(arguments.build.resolve(), work, 0), work / "m.xml", arguments.modes, arguments.rounds)
    finally:
        for store in reversed(stores):
            store.stop()
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
