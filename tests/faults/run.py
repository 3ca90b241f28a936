#!/usr/bin/env python3
"""Lets system calls fail, disks rot and connections break, and checks what the
command line and the server make of it.

  tests/faults/run.py --build build/ci [--every K] [NAME...]

A fault-free run counts the calls of each kind; then every call (every K-th with
--every) fails once in a run of its own. Demanded each time: never a wrong byte
with success, an output that is whole or absent, no temporary file, an error that
names the file; a server that goes on or starts again into a consistent state;
uploads and jobs that were acknowledged are there. The last line is
"N passed, N failed"; before it, one line per suite: trials, faults made."""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "tests/integration"))

import grpc  # noqa: E402
import harness as integration  # noqa: E402

MODEL = ROOT / "tests/data/models/resnet/openvino_model.xml"
FLAGS = ["--mode=int4_sym", "--ratio=0.6", "--group-size=8", "--group-size-fallback=adjust"]
OPTIONS = {"mode": "int4_sym", "ratio": 0.6, "group_size": 8, "group_size_fallback": "adjust"}

# (kind, error): what can happen to each kind of call. EINTR and short counts
# are no errors: the program must go on. KILL and TORN end the process by
# SIGKILL, before the call or after half of a write.
LOCAL_FAULTS = [
    ("open", "EIO"), ("open", "EMFILE"), ("open", "EINTR"),
    ("read", "EIO"), ("read", "EINTR"), ("read", "SHORT"),
    ("write", "EIO"), ("write", "ENOSPC"), ("write", "EINTR"), ("write", "SHORT"),
    ("sync", "EIO"), ("sync", "ENOSPC"), ("sync", "EINTR"),
    ("rename", "EIO"), ("rename", "ENOSPC"),
    ("truncate", "ENOSPC"), ("truncate", "EINTR"), ("mmap", "ENOMEM"), ("malloc", "ENOMEM"),
    ("open", "KILL"), ("write", "KILL"), ("write", "TORN"), ("sync", "KILL"), ("rename", "KILL"), ("truncate", "KILL"),
]
SERVER_FAULTS = [
    ("open", "EIO"), ("open", "EMFILE"), ("read", "EIO"), ("read", "SHORT"),
    ("write", "EIO"), ("write", "ENOSPC"), ("write", "SHORT"), ("write", "EINTR"),
    ("sync", "EIO"), ("rename", "EIO"), ("truncate", "ENOSPC"), ("mmap", "ENOMEM"), ("malloc", "ENOMEM"),
    ("open", "KILL"), ("write", "KILL"), ("write", "TORN"), ("sync", "KILL"), ("rename", "KILL"), ("truncate", "KILL"),
]
HARMLESS = ("EINTR", "SHORT")
DEADLY = ("KILL", "TORN")


class Shim:
    """Environment of a process under the shim, and what it counted."""

    def __init__(self, library: pathlib.Path, prefix: pathlib.Path | str, counter: pathlib.Path, kind: str, error: str = "EIO", nth: int = 0, sticky: bool = False):
        counter.write_bytes(bytes(16))
        self.counter = counter
        self.environment = dict(os.environ, LD_PRELOAD=str(library), OVPRESS_FAULT_PREFIX=str(prefix), OVPRESS_FAULT_KIND=kind, OVPRESS_FAULT_ERROR=error, OVPRESS_FAULT_NTH=str(nth), OVPRESS_FAULT_COUNT=str(counter))
        if sticky:
            self.environment["OVPRESS_FAULT_STICKY"] = "1"

    def counts(self) -> tuple[int, int]:
        return struct.unpack("QQ", self.counter.read_bytes())


class Suite:
    def __init__(self, name: str):
        self.name, self.trials, self.faults, self.failures = name, 0, 0, []
        self.begin = time.monotonic()

    def check(self, condition, what: str):
        if not condition:
            self.failures.append(what)

    def end(self) -> bool:
        for failure in self.failures[:20]:
            print(f"     {failure}")
        ok = not self.failures
        print(f"{'ok  ' if ok else 'FAIL'} {self.name}: {self.trials} trials, {self.faults} faults, {len(self.failures)} violations ({time.monotonic() - self.begin:.1f} s)", flush=True)
        return ok


class Context:
    def __init__(self, build: pathlib.Path, work: pathlib.Path, every: int):
        self.ovpress = build / "client/cli/ovpress"
        self.server = build / "server/ovpress-server"
        self.shim = build / "tests/faults/ovpress_faults.so"
        self.work, self.every = work, every
        self.xml, self.bin = MODEL.read_bytes(), MODEL.with_suffix(".bin").read_bytes()
        out = work / "reference.xml"
        subprocess.run([self.ovpress, "compress", MODEL, "-o", out, "--quiet", *FLAGS], check=True)
        self.want = out.read_bytes(), out.with_suffix(".bin").read_bytes()
        self._number = 0
        self._lock = threading.Lock()

    def folder(self) -> pathlib.Path:
        with self._lock:
            self._number += 1
            path = self.work / f"t{self._number}"
        path.mkdir()
        return path

    def chosen(self, count: int, offset: int = 0) -> list[int]:
        return [n for n in range(1, count + 1) if (n + offset) % self.every == 0 or (self.every > 1 and n == count)]


# --- the command line ---


def local_run(c: Context, kind: str, error: str, nth: int, replace: bool, sticky: bool = False):
    folder = c.folder()
    source = folder / "in"
    target = folder / "out"
    source.mkdir()
    target.mkdir()
    (source / "m.xml").write_bytes(c.xml)
    (source / "m.bin").write_bytes(c.bin)
    old = (b"<old/>", b"old")
    if replace:
        (target / "m.xml").write_bytes(old[0])
        (target / "m.bin").write_bytes(old[1])
    shim = Shim(c.shim, folder, c.work / (folder.name + ".count"), kind, error, nth, sticky)
    if kind == "malloc":
        shim.environment["OVPRESS_FAULT_MALLOC"] = "16384"
    command = [c.ovpress, "compress", source / "m.xml", "-o", target / "m.xml", "--threads=2", *FLAGS]
    done = subprocess.run(command, env=shim.environment, capture_output=True, text=True, timeout=120)
    found = {p.name: p.read_bytes() for p in target.iterdir()}
    if done.returncode == -signal.SIGKILL:
        # What it left must not be in the way of the next run.
        again = subprocess.run(command, capture_output=True, text=True, timeout=120)
        left = {p.name: p.read_bytes() for p in target.iterdir() if not p.name.startswith(".")}
        if again.returncode != 0 or left != {"m.xml": c.want[0], "m.bin": c.want[1]}:
            found["m.xml"] = b"the run after the kill failed"
    same_input = (source / "m.xml").read_bytes() == c.xml and (source / "m.bin").read_bytes() == c.bin
    shutil.rmtree(folder)
    return done, found, shim.counts(), same_input, old


def judge_local(c: Context, s: Suite, kind: str, error: str, nth: int, replace: bool, sticky: bool = False):
    done, found, (_, made), same_input, old = local_run(c, kind, error, nth, replace, sticky)
    what = f"{kind} {nth} {error}{' sticky' if sticky else ''}{' replacing' if replace else ''}: exit {done.returncode}: {done.stderr.strip()[-300:]}"
    s.trials += 1
    s.faults += made
    s.check(same_input, f"{what}: the input changed")
    whole = found == {"m.xml": c.want[0], "m.bin": c.want[1]}
    if done.returncode == 0:
        s.check(whole, f"{what}: success with another output: {sorted(found)}")
        return
    if error in DEADLY:
        s.check(done.returncode == -signal.SIGKILL, f"{what}: not killed")
        # Old and new never side by side: who finds an .xml finds its .bin.
        pair = {name: found.get(name) for name in ("m.xml", "m.bin")}
        s.check("m.xml" not in found or whole_pair(c, pair) or (replace and pair == {"m.xml": old[0], "m.bin": old[1]}), f"{what}: left {sorted(found)}, and they do not belong together")
        return
    s.check(error not in HARMLESS or sticky, f"{what}: this is no error")
    s.check(done.returncode == 1, f"{what}: not exit 1")
    lines = [line for line in done.stderr.splitlines() if line]
    s.check(len(lines) == 1 and lines[0].startswith("ovpress: "), f"{what}: not one line of error")
    s.check(kind == "malloc" or "/t" in done.stderr, f"{what}: the error names no file")
    s.check(kind != "malloc" or "memory" in done.stderr, f"{what}: the error does not say memory")
    before = {"m.xml": old[0], "m.bin": old[1]} if replace else {}
    if sticky and kind == "rename" and replace:
        # Putting the old files back cannot work either: then the message says
        # under which names they are.
        found = {re.sub(r"^\.(.*)\.ovpress-old-\d+$", r"\1", name) if f"/{name} now" in done.stderr else name: data for name, data in found.items()}
    s.check(found == before or whole, f"{what}: the output is neither whole nor as before: {sorted(found)}")


def whole_pair(c: Context, pair: dict[str, bytes | None]) -> bool:
    return pair == {"m.xml": c.want[0], "m.bin": c.want[1]}


def suite_local(c: Context) -> bool:
    s = Suite("local")
    jobs = []
    for kind in dict.fromkeys(kind for kind, _ in LOCAL_FAULTS):
        for replace in (False, True):
            done, found, (count, _), _, _ = local_run(c, kind, "EIO", 0, replace)
            s.check(done.returncode == 0 and found["m.bin"] == c.want[1], f"{kind}: the run without fault: {done.stderr}")
            for at, error in enumerate(e for k, e in LOCAL_FAULTS if k == kind):
                if replace and kind not in ("open", "sync", "rename"):
                    continue
                jobs += [(kind, error, n, replace, False) for n in c.chosen(count, at)]
                if error in ("ENOSPC", "EIO"):
                    jobs += [(kind, error, n, replace, True) for n in c.chosen(count, at + 1)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(judge_local, c, s, *job) for job in jobs]:
            future.result()
    return s.end()


# --- the server ---


class Server:
    def __init__(self, c: Context, data: pathlib.Path, *flags: str):
        self.c, self.data, self.flags = c, data, flags
        self.log = data.with_suffix(".log")
        self.process = None

    def start(self, environment=None, must: bool = True) -> bool:
        port_file = self.data.with_suffix(".port")
        port_file.unlink(missing_ok=True)
        command = [self.c.server, "--listen=127.0.0.1:0", "--metrics=127.0.0.1:0", f"--data-dir={self.data}", f"--port-file={port_file}", "--min-free-bytes=1", "--total-memory-bytes=512MiB", *self.flags]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([*map(str, command)], stderr=log, env=environment)
        for _ in range(3000):
            if port_file.exists() and len(port_file.read_text().split()) == 2:
                self.port = int(port_file.read_text().split()[0])
                return True
            if self.process.poll() is not None:
                if must:
                    raise RuntimeError(f"the server ended: {self.tail()}")
                return False
            time.sleep(0.01)
        self.kill()
        raise RuntimeError("the server did not come up")

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-600:]

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self):
        if self.alive():
            self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.kill()
            return -99

    def client(self, port: int | None = None) -> "integration.Client":
        return integration.Client(f"127.0.0.1:{port or self.port}")


class Wrong(Exception):
    """Not an error that was told, but a broken promise."""


class Exchange:
    """Upload, job, download; goes on after errors as a patient client does."""

    def __init__(self, c: Context):
        self.c = c
        self.blobs = {}  # acknowledged: digest -> bytes
        self.job = None  # acknowledged operation
        self.result = None
        self.errors = []
        self.request = 0
        self.patience = 10  # seconds

    def step(self, client):
        c = self.c
        for data in (c.xml, c.bin):
            blob = client.blob(data)
            missing = client.compression.FindMissingBlobs(client.pb.FindMissingBlobsRequest(blobs=[blob]), timeout=20)
            if not list(missing.blobs if hasattr(missing, "blobs") else missing.missing_blobs):
                continue
            if blob.sha256 in self.blobs:
                raise Wrong(f"an acknowledged upload of {len(data)} bytes is gone")
            client.upload(data)
            self.blobs[blob.sha256] = data
        model = client.pb.ModelBlobs(xml=client.blob(c.xml), bin=client.blob(c.bin))
        if self.job is None:
            self.job = client.submit(model, options=OPTIONS, request_id=f"r{self.request}").name
        try:
            operation = client.operations.GetOperation(client.lro.GetOperationRequest(name=self.job), timeout=20)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.NOT_FOUND:
                raise Wrong("an acknowledged job is gone")
            raise
        operation = client.operations.WaitOperation(client.lro.WaitOperationRequest(name=self.job, timeout={"seconds": self.patience}), timeout=self.patience + 10)
        if not operation.done:
            self.errors.append("job: not done in time")
            return False
        if operation.HasField("error"):
            if not operation.error.message:
                raise Wrong("a job failed without a message")
            self.errors.append(f"job: {operation.error.message}")
            self.request += 1
            self.job = None
            return False
        result = client.result(operation)
        try:
            got = client.read(result.model.xml), client.read(result.model.bin)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.DATA_LOSS, grpc.StatusCode.NOT_FOUND):
                # The result is damaged: have it made again.
                self.request += 1
                self.job = None
            raise
        if got != c.want:
            raise Wrong("a download gave other bytes with OK")
        self.result = result
        return True

    def go(self, server: Server, tries: int = 12) -> bool:
        """True once all is done; every error is a status with a message."""
        for _ in range(tries):
            if not server.alive():
                server.start()
            client = server.client()
            try:
                if self.step(client):
                    return True
                time.sleep(0.05)
            except grpc.RpcError as error:
                if not error.details():
                    raise Wrong(f"an error without a message: {error.code()}")
                self.errors.append(f"{error.code().name}: {error.details()}")
                time.sleep(0.05)
            finally:
                client.channel.close()
        return False


def judge_server(c: Context, s: Suite, kind: str, error: str, nth: int, sticky: bool = False):
    folder = c.folder()
    server = Server(c, folder / "data")
    # With a slash: "data.port" and "data.log" beside it must not fail.
    shim = Shim(c.shim, f"{folder}/data/", folder / "count", kind, error, nth, sticky)
    if kind == "malloc":
        shim.environment["OVPRESS_FAULT_MALLOC"] = "65536"
    what = f"server {kind} {nth} {error}{' sticky' if sticky else ''}"
    exchange = Exchange(c)
    if sticky:
        exchange.patience = 3  # no end can be stored; it waits for the restart
    s.trials += 1
    try:
        if not server.start(shim.environment, must=False):
            wanted = -signal.SIGKILL if error in DEADLY else 1
            s.check(server.process.returncode == wanted, f"{what}: start ended with {server.process.returncode}: {server.tail()}")
            last = server.tail().splitlines()[-1] if server.tail() else ""
            s.check(str(folder) in server.tail() or kind == "malloc" or error in DEADLY, f"{what}: the server ended without naming a file: {last}")
            server.start()
        done = exchange.go(server, 4 if sticky else 12)
        if not sticky:
            s.check(done, f"{what}: not done after all tries: {exchange.errors[-3:]}")
        s.check(server.process.returncode in (None, 0, 1) or error in DEADLY, f"{what}: the server crashed: {server.tail()}")
        for message in exchange.errors:
            # gRPC itself answers UNKNOWN if memory runs out in a handler.
            s.check("UNKNOWN" not in message.split(":")[0] or kind == "malloc", f"{what}: {message}")
        # What was acknowledged is there after a crash, and all works again.
        server.kill()
        server.start()
        s.check(exchange.go(server), f"{what}: not done after the restart: {exchange.errors[-3:]}")
        s.check(server.stop() == 0, f"{what}: bad end of the last stop")
        leftovers = [p for p in (folder / "data/store/tmp").iterdir()]
        s.check(not leftovers, f"{what}: left in tmp: {leftovers}")
    except Wrong as error_:
        s.check(False, f"{what}: {error_}; before: {exchange.errors[-3:]}")
    except Exception as error_:  # noqa: BLE001
        s.check(False, f"{what}: {type(error_).__name__} {error_}; {server.tail()[-300:]}")
    finally:
        if server.process is not None:
            server.kill()
    s.faults += shim.counts()[1]
    shutil.rmtree(folder, ignore_errors=True)


def judge_full_disk(c: Context, s: Suite, nth: int):
    """Every write fails for a while; without a restart all must end well."""
    folder = c.folder()
    server = Server(c, folder / "data")
    shim = Shim(c.shim, f"{folder}/data/", folder / "count", "write", "ENOSPC", nth, True)
    full = folder / "full"
    full.touch()
    shim.environment["OVPRESS_FAULT_WHILE"] = str(full)
    what = f"disk full from write {nth} on, for four seconds"
    s.trials += 1
    try:
        server.start(shim.environment)
        timer = threading.Timer(4, full.unlink)
        timer.start()
        exchange = Exchange(c)
        exchange.patience = 45  # the lease of a job whose end was lost is 30 s
        begin = time.monotonic()
        while time.monotonic() - begin < 5 or exchange.result is None:
            if exchange.go(server, 3) and time.monotonic() - begin > 5:
                break
            if time.monotonic() - begin > 70:
                break
            time.sleep(0.2)
        s.check(exchange.result is not None, f"{what}: not done: {exchange.errors[-2:]}")
        s.check(server.alive(), f"{what}: the server ended: {server.tail()}")
        s.check(server.stop() == 0, f"{what}: bad stop")
    except Exception as error:  # noqa: BLE001
        s.check(False, f"{what}: {type(error).__name__} {error}; {server.tail()[-300:]}")
    finally:
        server.kill()
    s.faults += shim.counts()[1]
    shutil.rmtree(folder, ignore_errors=True)


def count_server(c: Context, kind: str) -> int:
    folder = c.folder()
    server = Server(c, folder / "data")
    shim = Shim(c.shim, f"{folder}/data/", folder / "count", kind)
    if kind == "malloc":
        shim.environment["OVPRESS_FAULT_MALLOC"] = "65536"
    server.start(shim.environment)
    if not Exchange(c).go(server, 1):
        raise RuntimeError("the run without fault failed")
    server.stop()
    count = shim.counts()[0]
    shutil.rmtree(folder)
    return count


def suite_server(c: Context) -> bool:
    s = Suite("server")
    jobs = []
    for kind in dict.fromkeys(kind for kind, _ in SERVER_FAULTS):
        count = count_server(c, kind)
        for at, error in enumerate(e for k, e in SERVER_FAULTS if k == kind):
            # A server makes many more calls than a run of the command.
            jobs += [(kind, error, n, False) for n in c.chosen(count, at)[:: 3 if c.every > 1 else 1]]
    for kind, error in (("write", "ENOSPC"), ("sync", "EIO"), ("write", "EIO")):
        for n in (1, 20, 60) if c.every == 1 else (20,):
            jobs.append((kind, error, n, True))
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(judge_server, c, s, *job) for job in jobs]
        moments = random.Random(8).sample(range(26, 90), 6 if c.every == 1 else 1)  # the start makes 25 writes
        futures += [pool.submit(judge_full_disk, c, s, n) for n in moments]
        for future in futures:
            future.result()
    return s.end()


# --- rotten disks ---


def prepared(c: Context, kill: bool = False):
    """A data folder with a finished job in it."""
    server = Server(c, c.folder() / "data")
    server.start()
    exchange = Exchange(c)
    if not exchange.go(server, 2):
        raise RuntimeError(f"no result: {exchange.errors}")
    if kill:
        server.kill()
    elif server.stop() != 0:
        raise RuntimeError("bad stop")
    return server, exchange


def flip(path: pathlib.Path, at: int, bit: int = 1):
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ bit]))


def blob_file(server: Server, blob) -> pathlib.Path:
    return server.data / "store/blobs" / blob.sha256[:2] / f"{blob.sha256}-{blob.size_bytes}"


def suite_blobs(c: Context) -> bool:
    """Bits flip in stored blobs, files are cut or vanish, with the server down
    and up."""
    s = Suite("blobs")
    random_ = random.Random(5)

    def bit(path, size):
        flip(path, random_.randrange(size), 1 << random_.randrange(8))

    damages = {
        "first bit": lambda p, n: flip(p, 0),
        "last bit": lambda p, n: flip(p, n - 1, 0x80),
        "some bit": bit,
        "cut": lambda p, n: os.truncate(p, n - 1),
        "emptied": lambda p, n: os.truncate(p, 0),
        "longer": lambda p, n: p.open("ab").write(b"x"),
        "gone": lambda p, n: p.unlink(),
    }
    base, done = prepared(c)
    for running in (False, True):
        for name, damage in damages.items():
            for which in ("xml", "bin", "input xml", "input bin"):
                folder = c.folder()
                server = Server(c, folder / "data")
                shutil.copytree(base.data, server.data)
                s.trials += 1
                s.faults += 1
                what = f"{name} of {which}, {'running' if running else 'stopped'}"
                client = None
                try:
                    if running:
                        server.start()
                    client = server.client() if running else None
                    probe = integration.Client("127.0.0.1:1") if client is None else client
                    inputs = {"input xml": c.xml, "input bin": c.bin}
                    blob = probe.blob(inputs[which]) if which in inputs else getattr(done.result.model, which)
                    path = blob_file(server, blob)
                    damage(path, blob.size_bytes)
                    if not running:
                        server.start()
                        client = server.client()
                    want = {"xml": c.want[0], "bin": c.want[1], **inputs}[which]
                    try:
                        s.check(client.read(blob) == want, f"{what}: a download gave other bytes with OK")
                    except grpc.RpcError as error:
                        s.check(error.code() in (grpc.StatusCode.DATA_LOSS, grpc.StatusCode.NOT_FOUND) and error.details(), f"{what}: {error.code()} {error.details()}")
                    # The job runs again, from good bytes or not at all; a client
                    # that uploads what is missing always gets there.
                    again = Exchange(c)
                    again.request = 100
                    s.check(again.go(server, 6), f"{what}: cannot be mended by uploading again: {again.errors[-2:]}")
                    s.check(server.alive(), f"{what}: the server ended: {server.tail()}")
                except Wrong as error:
                    s.check(False, f"{what}: {error}")
                except Exception as error:  # noqa: BLE001
                    s.check(False, f"{what}: {type(error).__name__} {error}; {server.tail()[-300:]}")
                finally:
                    if server.process is not None:
                        server.kill()
                shutil.rmtree(folder, ignore_errors=True)
    return s.end()


def suite_database(c: Context) -> bool:
    """Damage to the job database and its log while the server is down: it either
    starts and serves what is right, or says what it found and changes nothing."""
    s = Suite("database")
    random_ = random.Random(6)
    bases = {"clean": prepared(c), "killed": prepared(c, kill=True)}

    def damage_list(path: pathlib.Path) -> list[tuple[str, object]]:
        size = path.stat().st_size
        if size == 0:
            return []
        offsets = [0, 16, 24, 28, 100, size // 2, size - 1] + [random_.randrange(size) for _ in range(40 // c.every + 4)]
        damages = [(f"{path.name}: bit at {at}", lambda p, at=at: flip(p, at, 1 << random_.randrange(8))) for at in offsets if at < size]
        for cut in [0, 1, 32, 100, 512, 4096, size // 2, size - 1] + [random_.randrange(size) for _ in range(12 // c.every + 2)]:
            if cut < size:
                damages.append((f"{path.name}: cut to {cut}", lambda p, cut=cut: os.truncate(p, cut)))
        damages.append((f"{path.name}: garbage", lambda p: p.write_bytes(random_.randbytes(size))))
        damages.append((f"{path.name}: gone", lambda p: p.unlink()))
        return damages

    for base_name, (base, done) in bases.items():
        for file in ("jobs.sqlite", "jobs.sqlite-wal", "jobs.sqlite-shm"):
            if not (base.data / file).exists():
                continue
            for name, damage in damage_list(base.data / file):
                folder = c.folder()
                server = Server(c, folder / "data")
                shutil.copytree(base.data, server.data)
                s.trials += 1
                s.faults += 1
                what = f"{base_name}, {name}"
                damage(server.data / file)
                try:
                    database = server.data / "jobs.sqlite"
                    before = database.read_bytes() if database.exists() else b""
                    if not server.start(must=False):
                        last = server.tail().splitlines()[-1]
                        s.check(server.process.returncode == 1, f"{what}: exit {server.process.returncode}: {last}")
                        s.check("jobs.sqlite" in last, f"{what}: the error does not name the database: {last}")
                        s.check(not database.exists() or file != "jobs.sqlite" or database.read_bytes() == before, f"{what}: refused, yet the file was changed")
                        continue
                    client = server.client()
                    try:
                        operation = client.operations.GetOperation(client.lro.GetOperationRequest(name=done.job), timeout=20)
                        operation = client.wait(operation, 20)
                        if not operation.HasField("error"):
                            result = client.result(operation)
                            try:
                                got = client.read(result.model.xml), client.read(result.model.bin)
                                s.check(got == c.want, f"{what}: wrong bytes behind a finished job")
                            except grpc.RpcError as error:
                                s.check(error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT), f"{what}: {error.details()}")
                    except grpc.RpcError as error:
                        s.check(error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.DATA_LOSS), f"{what}: {error.code()} {error.details()}")
                    again = Exchange(c)
                    again.request = 100
                    s.check(again.go(server, 4), f"{what}: started, but takes no job: {again.errors[-2:]}")
                except Wrong as error:
                    s.check(False, f"{what}: {error}")
                except Exception as error:  # noqa: BLE001
                    s.check(False, f"{what}: {type(error).__name__} {error}; {server.tail()[-300:]}")
                finally:
                    server.kill()
                    shutil.rmtree(folder, ignore_errors=True)
    return s.end()


# --- bad networks ---


class Proxy:
    """Between client and server: slow, in crumbs, and cutting connections; if
    `silent`, a cut one stays open at both ends and nothing passes any more."""

    def __init__(self, port: int, seed: int, cut_after: int, delay: float, crumb: int, silent: int = 0):
        self.target, self.random = port, random.Random(seed)
        self.cut_after, self.delay, self.crumb = cut_after, delay, crumb
        self.silent = silent  # so many connections, then no more
        self.cuts = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.open = True
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while self.open:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:  # the server is down: so is its address
                near.close()
                continue
            budget = self.random.randrange(self.cut_after // 2, self.cut_after * 2) if self.cut_after else 1 << 62
            if self.silent and self.cuts >= self.silent:
                budget = 1 << 62
            state = {"budget": budget, "dead": False, "silent": False, "pumps": 2, "lock": threading.Lock()}
            for a, b in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(a, b, state), daemon=True).start()

    def _pump(self, a: socket.socket, b: socket.socket, state: dict):
        # A socket that another thread waits on is not closed by close(): so
        # nobody waits long, and the last one out closes both.
        a.settimeout(0.02)
        try:
            while self.open and not state["dead"]:
                try:
                    data = a.recv(self.crumb)
                except TimeoutError:
                    continue
                if not data:
                    break
                state["budget"] -= len(data)
                if state["budget"] < 0 and self.silent > 0:
                    if not state["silent"]:
                        state["silent"] = True
                        self.cuts += 1
                    continue
                if state["budget"] < 0:
                    self.cuts += 1
                    # RST instead of FIN: nothing that was sent is waited for.
                    for end in (a, b):
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    break
                if self.delay:
                    time.sleep(self.delay)
                while data and not state["dead"]:
                    try:
                        data = data[b.send(data) :]
                    except TimeoutError:
                        continue
        except OSError:
            pass
        state["dead"] = True
        with state["lock"]:
            state["pumps"] -= 1
            last = state["pumps"] == 0
        if last:
            a.close()
            b.close()

    def close(self):
        self.open = False
        self.listener.close()


def suite_network(c: Context) -> bool:
    s = Suite("network")
    server = Server(c, c.folder() / "data", "--max-transfers-per-owner=16")
    server.start()
    # Bytes until a cut, delay and size of the pieces. A connection must carry one
    # message, or nobody can ever make progress: 16 KB here, and for our own
    # client, which sends up to 1 MiB, the 316 KB of the model's .bin.
    kinds = {
        "python": [(60_000, 0, 4096), (150_000, 0, 65536), (400_000, 0, 1000), (0, 0.002, 2048), (250_000, 0.0005, 3000), (40_000, 0, 700)],
        "ovpress": [(380_000, 0, 4096), (450_000, 0, 65536), (500_000, 0, 1000), (0, 0.002, 8192), (420_000, 0.0005, 8000)],
    }
    for round_ in range(max(1, 4 // c.every)):
        for program in kinds:
            for seed, (cut_after, delay, crumb) in enumerate(kinds[program]):
                proxy = Proxy(server.port, seed + 100 * round_, cut_after, delay, crumb)
                what = f"{program}, cut after about {cut_after}, delay {delay}, pieces of {crumb}"
                s.trials += 1
                try:
                    if program == "ovpress":
                        folder = c.folder()
                        out = folder / "m.xml"
                        done = subprocess.run([c.ovpress, "compress", MODEL, "-o", out, "--quiet", *FLAGS, f"--server=127.0.0.1:{proxy.port}"], capture_output=True, text=True, timeout=90)
                        found = {p.name: p.read_bytes() for p in folder.iterdir()}
                        if done.returncode == 0:
                            s.check(found == {"m.xml": c.want[0], "m.bin": c.want[1]}, f"{what}: success with another output")
                        else:
                            s.check(done.returncode == 1 and done.stderr.count("\n") == 1, f"{what}: exit {done.returncode} {done.stderr}")
                            s.check(not found, f"{what}: left behind {sorted(found)}")
                    else:
                        resumed_upload(c, s, what, proxy.port, seed + 1000 * round_)
                except subprocess.TimeoutExpired:
                    s.check(False, f"{what}: no end within 90 s")
                except Exception as error:  # noqa: BLE001
                    s.check(False, f"{what}: {type(error).__name__} {error}")
                finally:
                    if os.environ.get("OVPRESS_FAULTS_VERBOSE"):
                        print(f"     {time.monotonic() - s.begin:.1f} s: {what}, {proxy.cuts} cuts", flush=True)
                    proxy.close()
                    s.faults += proxy.cuts
    silent_peers(c, s, server)
    s.check(server.alive(), f"the server ended: {server.tail()}")
    fresh = Exchange(c)
    fresh.request = 7
    s.check(fresh.go(server, 2), "the server takes nothing any more")
    s.check(server.stop() == 0, "bad stop")
    return s.end()


def silent_peers(c: Context, s: Suite, server: Server):
    """Connections that die without a word (a pulled cable, a lost NAT entry)."""
    data = random.Random(99).randbytes(1_000_000)
    proxy = Proxy(server.port, 3, 150_000, 0, 4096, silent=2)
    s.trials += 1
    name, done = None, False
    for _ in range(40):
        # gRPC takes the old connection for alive: who gave up makes a new one.
        client = server.client(proxy.port)
        name = name or client.upload_name(data)
        try:
            at = 0
            try:
                at = client.bytes.QueryWriteStatus(client.bs.QueryWriteStatusRequest(resource_name=name), timeout=3).committed_size
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.NOT_FOUND:
                    raise
            messages = [client.bs.WriteRequest(resource_name=name, write_offset=i, data=data[i : i + 16384], finish_write=i + 16384 >= len(data)) for i in range(at, len(data), 16384)]
            done = client.bytes.Write(iter(messages), timeout=3).committed_size == len(data)
        except grpc.RpcError as error:
            # ABORTED: the silent writer gives way after ten seconds.
            s.check(error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.ABORTED, grpc.StatusCode.UNAVAILABLE), f"silent peer: {error.code()} {error.details()}")
            time.sleep(0.5)
        finally:
            client.channel.close()
        if done:
            break
    s.check(done, "an upload over connections that fall silent never ended")
    s.check(proxy.cuts == 2, f"{proxy.cuts} connections fell silent instead of 2")
    s.faults += proxy.cuts
    proxy.close()
    if c.every > 1:
        return
    # Our client finds out by its keepalive: a ping after a minute, 20 s to answer.
    proxy = Proxy(server.port, 4, 150_000, 0, 4096, silent=1)
    s.trials += 1
    out = c.folder() / "m.xml"
    llama = ROOT / "tests/data/models/llama/openvino_model.xml"
    done = subprocess.run([c.ovpress, "compress", llama, "-o", out, "--quiet", f"--server=127.0.0.1:{proxy.port}"], capture_output=True, text=True, timeout=300)
    s.check(done.returncode == 0, f"ovpress over a connection that falls silent: {done.stderr}")
    s.faults += proxy.cuts
    s.check(proxy.cuts == 1, f"{proxy.cuts} connections fell silent instead of 1")
    proxy.close()


def resumed_upload(c: Context, s: Suite, what: str, port: int, seed: int):
    """One blob through the proxy, resumed from where the server says, then read
    back in pieces that resume, too."""
    data = random.Random(seed).randbytes(300_000)
    client = integration.Client(f"127.0.0.1:{port}")
    name = client.upload_name(data)
    at, acknowledged = 0, False
    for _ in range(400):
        try:
            acknowledged = client.write(name, data, start=at, chunk=16384).committed_size == len(data)
            break
        except grpc.RpcError:
            try:
                status = client.bytes.QueryWriteStatus(client.bs.QueryWriteStatusRequest(resource_name=name), timeout=10)
                at = status.committed_size
                if status.complete:
                    acknowledged = True
                    break
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.NOT_FOUND:
                    at = 0
            time.sleep(0.02)
    s.check(acknowledged, f"{what}: the upload never ended")
    got = bytearray()
    blob = client.blob(data)
    for _ in range(400):
        try:
            for message in client.bytes.Read(client.bs.ReadRequest(resource_name=f"blobs/{blob.sha256}/{len(data)}", read_offset=len(got), read_limit=min(16384, len(data) - len(got))), timeout=20):
                got += message.data
            if len(got) == len(data):
                break
        except grpc.RpcError:
            time.sleep(0.02)
    s.check(bytes(got) == data, f"{what}: {len(got)} bytes came back, not those sent")
    client.channel.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--every", type=int, default=1, help="only every K-th call fails")
    parser.add_argument("names", nargs="*", help="local server blobs database network")
    arguments = parser.parse_args()
    passed = failed = 0
    with tempfile.TemporaryDirectory(prefix="ovpress-faults-") as name:
        work = pathlib.Path(name)
        (work / "stubs").mkdir()
        integration.generate_stubs(work / "stubs")
        context = Context(arguments.build.resolve(), work, arguments.every)
        for suite in ("local", "server", "blobs", "database", "network"):
            if arguments.names and suite not in arguments.names:
                continue
            try:
                ok = globals()[f"suite_{suite}"](context)
            except Exception:  # noqa: BLE001
                print(f"FAIL {suite}\n{traceback.format_exc()}", flush=True)
                ok = False
            passed, failed = passed + ok, failed + (not ok)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
