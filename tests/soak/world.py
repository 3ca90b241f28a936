"""What the soak's clients share: models with the results that are right, the
server that is killed under them, the ledger of what it acknowledged, and the
audit of what lies on its disk."""

from __future__ import annotations

import collections
import hashlib
import importlib.util
import json
import os
import pathlib
import random
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request

import grpc

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def load(name: str, path: pathlib.Path):
    """The suites beside this one are called run.py, too."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


integration = load("harness", ROOT / "tests/integration/harness.py")
faults = load("ovpress_faults", ROOT / "tests/faults/run.py")


class Violation(Exception):
    """A broken promise, as opposed to an error that was told."""


# --- models ---


class Entry:
    """A model with options, and the one right result."""

    def __init__(self, name: str, xml: bytes, bin_: bytes, options: dict, flags: list[str], path: pathlib.Path):
        self.name, self.xml, self.bin, self.options, self.flags, self.path = name, xml, bin_, options, flags, path
        self.want_xml = self.want_bin = b""

    def right(self, xml: bytes, bin_: bytes, what: str):
        if xml != self.want_xml or bin_ != self.want_bin:
            raise Violation(f"{what}: {self.name} came with other bytes")


CHOICES = [
    ("int8_asym", {"mode": "int8_asym"}, ["--mode=int8_asym"]),
    ("int4", {"mode": "int4_sym", "ratio": 0.6, "group_size": 8, "group_size_fallback": "adjust"}, ["--mode=int4_sym", "--ratio=0.6", "--group-size=8", "--group-size-fallback=adjust"]),
    ("nf4", {"mode": "nf4", "group_size": 8, "group_size_fallback": "adjust"}, ["--mode=nf4", "--group-size=8", "--group-size-fallback=adjust"]),
]


class Catalog:
    """Small real models, and one of 16 MB that takes a while."""

    def __init__(self, ovpress: pathlib.Path, work: pathlib.Path):
        self.small: list[Entry] = []
        for folder in ("resnet", "bert", "gpt2", "llama"):
            path = ROOT / "tests/data/models" / folder / "openvino_model.xml"
            self._add(self.small, ovpress, work, folder, path)
        chain = work / "chain.xml"
        xml, data = chain_model()
        chain.write_bytes(xml)
        chain.with_suffix(".bin").write_bytes(data)
        self.large: list[Entry] = []
        self._add(self.large, ovpress, work, "chain", chain)
        self.all = self.small + self.large

    def _add(self, to: list, ovpress: pathlib.Path, work: pathlib.Path, name: str, path: pathlib.Path):
        for choice, options, flags in CHOICES:
            entry = Entry(f"{name} {choice}", path.read_bytes(), path.with_suffix(".bin").read_bytes(), options, flags, path)
            out = work / "want.xml"
            subprocess.run([ovpress, "compress", path, "-o", out, "--quiet", *flags], check=True)
            entry.want_xml, entry.want_bin = out.read_bytes(), out.with_suffix(".bin").read_bytes()
            to.append(entry)


def chain_model() -> tuple[bytes, bytes]:
    """16 MB of weights in 16 constants behind MatMuls in a chain."""
    rows, count = 512, 16
    size = rows * rows * 4
    vector = f"<dim>1</dim><dim>{rows}</dim>"
    matrix = f"<dim>{rows}</dim><dim>{rows}</dim>"
    layers = [f'<layer id="0" name="x" type="Parameter" version="opset1"><data shape="1,{rows}" element_type="f32"/><output><port id="0" precision="FP32" names="x">{vector}</port></output></layer>']
    edges, last = [], (0, 0)
    for i in range(count):
        weight, matmul = 2 * i + 1, 2 * i + 2
        layers.append(f'<layer id="{weight}" name="w{i}" type="Const" version="opset1"><data element_type="f32" shape="{rows}, {rows}" offset="{i * size}" size="{size}"/><output><port id="0" precision="FP32">{matrix}</port></output></layer>')
        layers.append(f'<layer id="{matmul}" name="m{i}" type="MatMul" version="opset1"><data transpose_a="false" transpose_b="true"/><input><port id="0" precision="FP32">{vector}</port><port id="1" precision="FP32">{matrix}</port></input><output><port id="2" precision="FP32">{vector}</port></output></layer>')
        edges.append(f'<edge from-layer="{last[0]}" from-port="{last[1]}" to-layer="{matmul}" to-port="0"/><edge from-layer="{weight}" from-port="0" to-layer="{matmul}" to-port="1"/>')
        last = (matmul, 2)
    end = 2 * count + 1
    layers.append(f'<layer id="{end}" name="r" type="Result" version="opset1"><input><port id="0" precision="FP32">{vector}</port></input></layer>')
    edges.append(f'<edge from-layer="{last[0]}" from-port="{last[1]}" to-layer="{end}" to-port="0"/>')
    xml = f'<?xml version="1.0"?>\n<net name="chain" version="11"><layers>{"".join(layers)}</layers><edges>{"".join(edges)}</edges><rt_info/></net>\n'
    rng = random.Random(7)
    # Floats in [1, 2) of any mantissa with any sign: finite and all different.
    words = bytearray(rng.randbytes(count * size))
    words[3::4] = bytes(0x3F | (b & 0x80) for b in words[3::4])
    words[2::4] = bytes(0x80 | b for b in words[2::4])
    return xml.encode(), bytes(words)


# --- the server ---


def free_port(rng: random.Random) -> int:
    """Below the ports that the system gives to clients, so that nobody takes it
    while the server is down."""
    while True:
        port = rng.randrange(12000, 30000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


class Server:
    """One data folder and one port, many processes one after another. The
    faults' shim is below the process, so that its disk can be full, or that it
    dies at a chosen call."""

    def __init__(self, build: pathlib.Path, data: pathlib.Path, rng: random.Random, *flags: str):
        self.binary = build / "server/ovpress-server"
        self.shim = build / "tests/faults/ovpress_faults.so"
        self.data, self.flags = data, flags
        self.port = free_port(rng)
        self.log = data.with_suffix(".log")
        self.process: subprocess.Popen | None = None
        self.http_port = 0
        self.starts = 0

    @property
    def full(self) -> pathlib.Path:
        """While this file is there, nothing can be written."""
        return self.data.with_suffix(".full")

    def launch(self, *flags: str, kind: str = "", error: str = "ENOSPC", nth: int = 1):
        """Starts a process; `flags` take the place of those of the same name.
        With `kind` its Nth call of that kind fails by `error`; else its writes
        fail while the disk is full."""
        port_file = self.data.with_suffix(".port")
        port_file.unlink(missing_ok=True)
        environment = dict(os.environ)
        # A slash at the end: the files beside the folder do not fail.
        environment.update(OVPRESS_FAULT_PREFIX=f"{self.data}/", OVPRESS_FAULT_KIND=kind or "write", OVPRESS_FAULT_ERROR=error, OVPRESS_FAULT_NTH=str(nth))
        if not kind:
            environment.update(OVPRESS_FAULT_STICKY="1", OVPRESS_FAULT_WHILE=str(self.full))
        if self.shim.exists():
            environment["LD_PRELOAD"] = str(self.shim)
        given = {flag.partition("=")[0] for flag in flags}
        flags = (*(f for f in self.flags if f.partition("=")[0] not in given), *flags)
        command = [self.binary, f"--listen=127.0.0.1:{self.port}", "--metrics=127.0.0.1:0", f"--data-dir={self.data}", f"--port-file={port_file}", *flags]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([*map(str, command)], stderr=log, env=environment)
        self.starts += 1

    def start(self, *flags: str, **fault) -> bool:
        """launch(), then waits until it serves. False if an injected SIGKILL
        ended it before."""
        self.launch(*flags, **fault)
        port_file = self.data.with_suffix(".port")
        for _ in range(6000):
            if port_file.exists():
                self.http_port = int(port_file.read_text().split()[1])
                return True
            if self.process.poll() is not None:
                if fault and self.process.returncode == -signal.SIGKILL:
                    return False
                raise Violation(f"the server does not start: exit {self.process.returncode}: {self.tail()}")
            time.sleep(0.01)
        self.kill()
        raise Violation(f"the server was not ready within a minute: {self.tail()}")

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-600:]

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self):
        if self.alive():
            self.process.kill()
        self.process.wait()

    def stop(self, seconds: float = 60):
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Violation(f"SIGTERM did not end the server within {seconds:.0f} s: {self.tail()}")
        if code != 0:
            raise Violation(f"SIGTERM ended the server with {code}: {self.tail()}")

    def client(self, port: int = 0) -> "integration.Client":
        # Else channels share a connection, and its back-off after a refusal.
        address = f"127.0.0.1:{port or self.port}"
        return integration.Client(address, grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]))

    def metrics(self) -> dict[str, float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        return {m[1]: float(m[2]) for m in re.finditer(r"^(\w+) ([-+.\deE]+)$", text, re.M)}

    def use(self) -> dict[str, int]:
        """Memory, descriptors and threads of the process now."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return {
            "rss_kib": int(re.search(r"VmRSS:\s*(\d+)", status)[1]),
            "descriptors": len(os.listdir(f"/proc/{self.process.pid}/fd")),
            "threads": int(re.search(r"Threads:\s*(\d+)", status)[1]),
        }


# --- what was acknowledged ---


class Job:
    def __init__(self, name: str, entry: Entry, kills: int):
        self.name, self.entry = name, entry
        self.kills_before = kills  # of the server, when it was submitted
        self.full_before = 0  # times that the disk was full, likewise
        self.cancelled = False  # somebody asked to
        self.deleted = False
        self.judged = False


class Ledger:
    """What the server said yes to, and what went wrong. Thread-safe."""

    def __init__(self):
        self.lock = threading.Lock()
        self.uploads: dict[str, int] = {}  # SHA-256 -> size: must stay
        self.seen: set[str] = set()  # of every blob that may lie in the store
        self.jobs: dict[str, Job] = {}
        self.counts: collections.Counter = collections.Counter()
        self.violations: list[str] = []

    def uploaded(self, data: bytes, keep: bool = True):
        digest = hashlib.sha256(data).hexdigest()
        with self.lock:
            self.seen.add(digest)
            if keep:
                self.uploads[digest] = len(data)

    def submitted(self, job: Job):
        with self.lock:
            self.jobs[job.name] = job

    def count(self, what: str, by: int = 1):
        with self.lock:
            self.counts[what] += by

    def violation(self, what: str):
        with self.lock:
            self.violations.append(what)
            if len(self.violations) == 31:
                print("... further violations are counted only", flush=True)
            if len(self.violations) > 30:
                return
        print(f"VIOLATION {what}", flush=True)


# --- calls ---


def upload(client, ledger: Ledger, data: bytes, keep: bool = True, name: str | None = None, start: int = 0, chunk: int = integration.CHUNK, timeout: float = 60):
    """One blob; entered in the ledger once the server acknowledged it."""
    blob = client.blob(data)
    with ledger.lock:
        ledger.seen.add(blob.sha256)

    name = name or client.upload_name(data)

    def messages():
        at, first = start, True
        while first or at < len(data):
            part = data[at : at + chunk]
            yield client.bs.WriteRequest(resource_name=name if first else "", write_offset=at, data=part, finish_write=at + len(part) >= len(data))
            at += len(part)
            first = False

    answer = client.bytes.Write(messages(), timeout=timeout)
    if answer.committed_size != len(data):
        raise Violation(f"an upload of {len(data)} bytes ended with OK at {answer.committed_size}")
    ledger.uploaded(data, keep)
    return blob


def read(client, blob, offset: int = 0, timeout: float = 60) -> bytes:
    name = f"blobs/{blob.sha256}/{blob.size_bytes}"
    return b"".join(m.data for m in client.bytes.Read(client.bs.ReadRequest(resource_name=name, read_offset=offset), timeout=timeout))


def ensure_model(client, ledger: Ledger, entry: Entry, keep: bool = False):
    blobs = [client.blob(entry.xml), client.blob(entry.bin)]
    missing = client.compression.FindMissingBlobs(client.pb.FindMissingBlobsRequest(blobs=blobs), timeout=30).missing_blobs
    wanted = {b.sha256 for b in missing}
    for blob, data in zip(blobs, (entry.xml, entry.bin)):
        if blob.sha256 in wanted:
            with ledger.lock:
                if blob.sha256 in ledger.uploads:
                    raise Violation(f"an acknowledged upload of {len(data)} bytes is gone")
            upload(client, ledger, data, keep)
        else:
            ledger.uploaded(data, keep)
    return client.pb.ModelBlobs(xml=blobs[0], bin=blobs[1])


def submit(client, ledger: Ledger, entry: Entry, kills: int, **fields) -> Job:
    model = ensure_model(client, ledger, entry)
    operation = client.compression.CompressModel(client.pb.CompressModelRequest(model=model, options=client.pb.CompressionOptions(**entry.options), **fields), timeout=60)
    job = Job(operation.name, entry, kills)
    ledger.submitted(job)
    return job


def get(client, job: Job):
    try:
        return client.operations.GetOperation(client.lro.GetOperationRequest(name=job.name), timeout=30)
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.NOT_FOUND and not job.deleted:
            raise Violation(f"the acknowledged job {job.name} is gone")
        raise


def wait(client, job: Job, seconds: int):
    """The finished operation, or None if the time is over."""
    get(client, job)
    operation = client.operations.WaitOperation(client.lro.WaitOperationRequest(name=job.name, timeout={"seconds": seconds}), timeout=seconds + 20)
    return operation if operation.done else None


def response(client, operation):
    result = client.pb.CompressModelResponse()
    if not operation.response.Unpack(result):
        raise Violation(f"{operation.name} is done without a response")
    return result


def check_end(client, ledger: Ledger, job: Job, operation, kills: int, excused: bool = False) -> bool:
    """Judges how a job ended; True if it has a result, which is then right by
    its digests."""
    if operation.HasField("error"):
        error = operation.error
        if not error.message:
            raise Violation(f"{job.name} failed without a message")
        if error.code == grpc.StatusCode.CANCELLED.value[0] and job.cancelled:
            ledger.count("jobs cancelled")
            return False
        # By design: a job that was running at five deaths may be their reason.
        if "may be the reason" in error.message and kills - job.kills_before >= 5:
            ledger.count("jobs given up after five kills")
            return False
        if excused:
            ledger.count("jobs failed by a full disk")
            return False
        raise Violation(f"{job.name} ({job.entry.name}) failed: {error.code} {error.message}")
    result = response(client, operation)
    for blob, want in ((result.model.xml, job.entry.want_xml), (result.model.bin, job.entry.want_bin)):
        if blob.sha256 != hashlib.sha256(want).hexdigest() or blob.size_bytes != len(want):
            raise Violation(f"{job.name} ({job.entry.name}) has another digest")
    with ledger.lock:
        ledger.seen |= {result.model.xml.sha256, result.model.bin.sha256, result.report.sha256}
    ledger.count("jobs with the right result")
    return True


# --- what lies on the disk ---


def audit(data: pathlib.Path, ledger: Ledger, where: str) -> dict[str, int]:
    """Compares a stopped server's folder with the job database and the ledger;
    breaks are entered there. Returns counts."""
    store = data / "store"
    found = collections.Counter()

    def wrong(what: str):
        ledger.violation(f"{where}: {what}")

    for name in ("tmp", "corrupt"):
        for path in (store / name).iterdir():
            wrong(f"left in {name}: {path.name}")
    blobs: dict[str, int] = {}
    for path in (store / "blobs").glob("*/*"):
        digest, _, size = path.name.partition("-")
        content = path.read_bytes()
        if not size.isdigit() or len(content) != int(size) or hashlib.sha256(content).hexdigest() != digest:
            wrong(f"the blob {path.name} is not what its name says ({len(content)} bytes)")
        blobs[path.name] = len(content)
    markers = {p.name for p in (store / "owners").glob("*/*")}
    for name in blobs.keys() - markers:
        wrong(f"nobody owns the blob {name}")
    for name in markers - blobs.keys():
        wrong(f"an owner of {name}, which is not there")
    results = set()
    database = sqlite3.connect(f"file:{data / 'jobs.sqlite'}?mode=ro", uri=True)
    columns = [row[1] for row in database.execute("PRAGMA table_info(jobs)")]
    for row in database.execute("SELECT * FROM jobs"):
        record = dict(zip(columns, row))
        found["jobs"] += 1
        text = next(v for v in record.values() if isinstance(v, str) and v.startswith("{"))
        result = json.loads(text).get("result")
        for key in ("xml", "bin", "report") if result else ():
            name = f"{result[key][0]}-{result[key][1]}"
            results.add(name)
            if name not in blobs and result[key][1] != 0:
                wrong(f"operations/{record['id']} names the {key} {name}, which is not there")
    database.close()
    lost: list[str] = []
    with ledger.lock:
        for digest, size in ledger.uploads.items():
            if f"{digest}-{size}" not in blobs:
                lost.append(f"the acknowledged upload {digest}-{size} is not there")
        unknown = {name for name in blobs if name.partition("-")[0] not in ledger.seen} - results
    for what in lost:
        wrong(what)
    found["blobs"] = len(blobs)
    # A death between the publication of a result and the end of its job leaves
    # such blobs; they belong to their owner and are evicted like unused ones.
    found["results without a job"] = len(unknown)
    found["uploads to resume"] = len(list((store / "uploads").iterdir()))
    return dict(found)


def audit_empty(server: Server, ledger: Ledger, where: str):
    """After all jobs are deleted and all limits are down, nothing may stay."""
    server.start("--max-store-bytes=1", "--min-blob-age=0.001", "--upload-ttl=0.001", "--sweep-interval=0.1")
    client = server.client()
    while True:
        page = client.operations.ListOperations(client.lro.ListOperationsRequest(page_size=500), timeout=60)
        if not page.operations:
            break
        for operation in page.operations:
            if not operation.done:
                raise Violation(f"{where}: {operation.name} is not done")
            client.operations.DeleteOperation(client.lro.DeleteOperationRequest(name=operation.name), timeout=30)
    client.channel.close()
    store = server.data / "store"
    for _ in range(1200):
        left = [p for p in store.rglob("*") if p.is_file() and p.name != "LOCK"]
        if not left:
            break
        time.sleep(0.1)
    for path in left:
        ledger.violation(f"{where}: cannot be cleaned up: {path.relative_to(store)}")
    numbers = server.metrics()
    for name in ("ovpress_store_bytes", "ovpress_jobs_queued", "ovpress_jobs_running", "ovpress_transfers_active", "ovpress_memory_reserved_bytes"):
        if numbers.get(name, 0) != 0:
            ledger.violation(f"{where}: {name} is {numbers[name]:.0f} with nothing in the store")
    server.stop()
