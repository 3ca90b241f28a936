"""The mixed soak, in two parts. The storm: all clients at once while the server
is killed, drained and finds its disk full, every few seconds. The life: the same
clients on one process that nobody disturbs, in rounds; between two rounds all
is quiet, and what the process holds then must not grow."""

from __future__ import annotations

import pathlib
import random
import shutil
import socket
import statistics
import struct
import subprocess
import threading
import time
import traceback
import uuid

import grpc

import kills
import world
from world import Entry, Job, Ledger, Server, Violation

IDLE_SECONDS = 3
GROWTH = 1.10
# The allocator and gRPC's threads need a minute or two under load to come to
# rest (see docs/reliability.md): a shorter life is held to fixed bounds.
LIFE_SECONDS_MIN = 180
SHORT_LIFE_BOUNDS = {"rss_kib": 256 << 10, "descriptors": 30, "threads": 40}
CHUNK = 1 << 16
PROTECTED = 40  # acknowledged uploads that are kept in use and must stay


class Arena:
    """Where all meet. Thread-safe."""

    def __init__(self, build: pathlib.Path, work: pathlib.Path, seed: int):
        self.build, self.work, self.seed = build, work, seed
        self.ledger = Ledger()
        self.catalog = world.Catalog(build / "client/cli/ovpress", work)
        self.server = Server(
            build, work / "data", random.Random(seed), "--threads=2", "--max-running=2", f"--idle-timeout={IDLE_SECONDS}",
            "--max-store-bytes=2GiB", "--min-blob-age=20", "--upload-ttl=60", "--sweep-interval=2",
            "--max-transfers=40", "--max-transfers-per-owner=40", "--max-owner-uploads=500", "--total-memory-bytes=2GiB")
        self.lock = threading.Condition()
        self.over = False
        self.paused = False
        self.waiting: set[str] = set()
        self.generation = 0  # counts beginnings and ends of faults
        self.active = 0
        self.kills = 0
        self.fulls = 0  # times that the disk was full
        self.slowest_health = 0.0

    # -- faults

    def fault(self, begins: bool):
        with self.lock:
            self.generation += 1
            self.active += 1 if begins else -1

    def disturbed(self, since: int) -> bool:
        with self.lock:
            return self.active > 0 or self.generation != since

    # -- rounds

    def gate(self, name: str):
        with self.lock:
            while self.paused and not self.over:
                self.waiting.add(name)
                self.lock.notify_all()
                self.lock.wait(1)
            self.waiting.discard(name)

    def pause(self, actors: list["Actor"]):
        """Until every client has ended what it does and the server is idle."""
        with self.lock:
            self.paused = True
        until = time.monotonic() + 120
        with self.lock:
            while len(self.waiting) < len(actors) and time.monotonic() < until:
                self.lock.wait(1)
            stuck = {a.name for a in actors} - self.waiting
        if stuck:
            self.ledger.violation(f"stuck: {', '.join(sorted(stuck))} did not end within two minutes")
        until = time.monotonic() + 90  # the lease of a job whose end was lost is 30 s
        while True:
            numbers = self.server.metrics()
            busy = {n: numbers[n] for n in ("ovpress_transfers_active", "ovpress_jobs_queued", "ovpress_jobs_running") if numbers[n]}
            if not busy:
                return
            if time.monotonic() > until:
                self.ledger.violation(f"stuck: no client is there, yet {busy} after 90 s")
                return
            time.sleep(0.1)

    def resume(self):
        with self.lock:
            self.paused = False
            self.lock.notify_all()


class Actor(threading.Thread):
    """One client, again and again. An error needs a cause: a fault that was
    active while the call ran, or what the client did itself."""

    def __init__(self, arena: Arena, number: int):
        super().__init__(name=f"{type(self).__name__.lower()}{number}", daemon=True)
        self.arena, self.ledger, self.catalog = arena, arena.ledger, arena.catalog
        self.rng = random.Random(f"{arena.seed} {self.name}")
        self.open_jobs: list[Job] = []
        self.client = None

    def run(self):
        while True:
            self.arena.gate(self.name)
            if self.arena.over:
                return
            since = self.arena.generation
            kind = type(self).__name__.lower()
            try:
                self.client = self.connect()
                self.act()
                self.ledger.count(f"{kind}: ended well")
            except Violation as error:
                self.ledger.violation(f"{self.name}: {error}")
            except grpc.RpcError as error:
                text = f"{error.code().name}: {error.details()}"
                if not error.details():
                    self.ledger.violation(f"{self.name}: an error without a message: {text}")
                elif self.own_fault(error) or self.arena.disturbed(since):
                    self.ledger.count(f"{kind}: errors with a cause")
                    time.sleep(0.2)
                else:
                    where = traceback.extract_tb(error.__traceback__)[-1] if error.__traceback__ else ""
                    self.ledger.violation(f"{self.name}: an error without a cause: {text} {[f.name for f in traceback.extract_tb(error.__traceback__)]} {where}")
            except Exception:  # noqa: BLE001
                self.ledger.violation(f"{self.name}: {traceback.format_exc()}")
            finally:
                if self.client is not None:
                    self.client.channel.close()

    def connect(self):
        return self.arena.server.client()

    def own_fault(self, error: grpc.RpcError) -> bool:
        return False

    def act(self):
        raise NotImplementedError

    # -- what several do

    def entry(self) -> Entry:
        return self.rng.choice(self.catalog.large if self.rng.random() < 0.15 else self.catalog.small)

    def submit(self, entry: Entry, **fields) -> Job:
        fulls = self.arena.fulls
        job = world.submit(self.client, self.ledger, entry, self.arena.kills, ignore_result_cache=self.rng.random() < 0.7, **fields)
        job.full_before = fulls
        self.open_jobs.append(job)
        return job

    def judge(self, job: Job, operation) -> bool:
        ok = world.check_end(self.client, self.ledger, job, operation, self.arena.kills, excused=self.arena.fulls > job.full_before)
        job.judged = True
        if job in self.open_jobs:
            self.open_jobs.remove(job)
        return ok

    def settle(self):
        """Jobs that an error kept this client from seeing the end of."""
        for job in list(self.open_jobs):
            operation = world.wait(self.client, job, 90)
            if operation is None:
                raise Violation(f"{job.name} is not done after 90 s")
            self.judge(job, operation)

    def delete(self, job: Job):
        job.deleted = True
        try:
            self.client.operations.DeleteOperation(self.client.lro.DeleteOperationRequest(name=job.name), timeout=30)
        except grpc.RpcError:
            # It may or may not have happened.
            with self.ledger.lock:
                self.ledger.jobs.pop(job.name, None)
            raise
        with self.ledger.lock:
            self.ledger.jobs.pop(job.name, None)


class Good(Actor):
    """Upload, job, watch, download; what most clients do."""

    def act(self):
        self.settle()
        job = self.submit(self.entry(), request_id=str(uuid.uuid4()), priority=self.rng.randrange(-3, 4))
        operation = None
        for operation in self.client.compression.WatchOperation(self.client.pb.WatchOperationRequest(name=job.name), timeout=120):
            pass
        if operation is None or not operation.done:
            raise Violation(f"a watch of {job.name} ended with OK before the job")
        if not self.judge(job, operation):
            return
        result = world.response(self.client, operation)
        data = world.read(self.client, result.model.bin)
        job.entry.right(world.read(self.client, result.model.xml), data, job.name)
        if len(data) > 1:
            at = self.rng.randrange(len(data))
            if world.read(self.client, result.model.bin, at) != data[at:]:
                raise Violation(f"{job.name}: a download from {at} gives other bytes")
        if self.rng.random() < 0.8:
            self.delete(job)


class Uploader(Actor):
    """Uploads random bytes, resumes after each break, reads them back; the
    latest are protected and must stay."""

    def act(self):
        data = self.rng.randbytes(self.rng.randrange(1, 8 << 20 if self.rng.random() < 0.05 else 1 << 19))
        name = self.client.upload_name(data)
        if not self.resumed(name, data):
            return
        if self.read_back(data) != data:
            raise Violation(f"an upload of {len(data)} bytes comes back as others")
        # From here on it is looked after: see Keeper.
        with self.ledger.lock:
            self.ledger.uploads[self.client.blob(data).sha256] = len(data)
            for digest in list(self.ledger.uploads)[:-PROTECTED]:
                del self.ledger.uploads[digest]

    def chunk(self) -> int:
        return CHUNK

    def resumed(self, name: str, data: bytes) -> bool:
        at = 0
        until = time.monotonic() + 60
        while time.monotonic() < until and not self.arena.over:
            since = self.arena.generation
            try:
                world.upload(self.client, self.ledger, data, False, name, at, self.chunk())
                return True
            except grpc.RpcError as error:
                if not (self.own_fault(error) or self.arena.disturbed(since)):
                    raise
                self.ledger.count(f"{type(self).__name__.lower()}: breaks resumed")
            time.sleep(0.1)
            try:
                at = self.client.bytes.QueryWriteStatus(self.client.bs.QueryWriteStatusRequest(resource_name=name), timeout=20).committed_size
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.NOT_FOUND:
                    at = 0
        raise Violation(f"an upload of {len(data)} bytes did not end within a minute")

    def read_back(self, data: bytes) -> bytes:
        got = bytearray()
        blob = self.client.blob(data)
        until = time.monotonic() + 60
        while len(got) < len(data):
            since = self.arena.generation
            try:
                request = self.client.bs.ReadRequest(resource_name=f"blobs/{blob.sha256}/{len(data)}", read_offset=len(got))
                for message in self.client.bytes.Read(request, timeout=30):
                    got += message.data
            except grpc.RpcError as error:
                if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.DATA_LOSS):
                    raise Violation(f"an acknowledged upload cannot be read: {error.code().name} {error.details()}")
                if not (self.own_fault(error) or self.arena.disturbed(since)) or time.monotonic() > until:
                    raise
                time.sleep(0.1)
        return bytes(got)


class Behindproxy(Uploader):
    """The same through a proxy that is slow and resets connections."""

    KINDS = [(300_000, 0, 4096), (900_000, 0, 65536), (2_000_000, 0.0005, 8000), (0, 0.001, 4096)]

    def connect(self):
        cut_after, delay, crumb = self.rng.choice(self.KINDS)
        self.proxy = world.faults.Proxy(self.arena.server.port, self.rng.randrange(1 << 30), cut_after, delay, crumb)
        return self.arena.server.client(self.proxy.port)

    def chunk(self) -> int:
        return 1 << 14

    def read_back(self, data: bytes) -> bytes:
        # In pieces that fit between two cuts.
        got = bytearray()
        blob = self.client.blob(data)
        until = time.monotonic() + 90
        while len(got) < len(data):
            try:
                request = self.client.bs.ReadRequest(resource_name=f"blobs/{blob.sha256}/{len(data)}", read_offset=len(got), read_limit=1 << 15)
                for message in self.client.bytes.Read(request, timeout=30):
                    got += message.data
            except grpc.RpcError as error:
                if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.DATA_LOSS) or time.monotonic() > until:
                    raise Violation(f"an acknowledged upload cannot be read: {error.code().name} {error.details()}")
                time.sleep(0.05)
        return bytes(got)

    def act(self):
        try:
            super().act()
        finally:
            self.ledger.count("connections cut by the proxy", self.proxy.cuts)
            self.proxy.close()

    def own_fault(self, error: grpc.RpcError) -> bool:
        # A second writer on an upload whose first one's connection was cut.
        return error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.ABORTED)


class Slow(Actor):
    """Crumbs up, pauses down; never so slow that it counts as idle."""

    def act(self):
        data = self.rng.randbytes(1 << 18)
        name = self.client.upload_name(data)

        def crumbs():
            for at in range(0, len(data), 8192):
                time.sleep(self.rng.uniform(0, 0.08))
                part = data[at : at + 8192]
                yield self.client.bs.WriteRequest(resource_name=name if at == 0 else "", write_offset=at, data=part, finish_write=at + len(part) == len(data))

        with self.ledger.lock:
            self.ledger.seen.add(self.client.blob(data).sha256)
        if self.client.bytes.Write(crumbs(), timeout=90).committed_size != len(data):
            raise Violation("a slow upload ended with OK before its end")
        self.settle()
        job = self.submit(self.rng.choice(self.catalog.large))
        operation = world.wait(self.client, job, 60)
        if operation is None:
            raise Violation(f"{job.name} is not done after a minute")
        if not self.judge(job, operation):
            return
        blob = world.response(self.client, operation).model.bin
        got = bytearray()
        for message in self.client.bytes.Read(self.client.bs.ReadRequest(resource_name=f"blobs/{blob.sha256}/{blob.size_bytes}"), timeout=90):
            got += message.data
            time.sleep(self.rng.uniform(0, 0.3))
        job.entry.right(job.entry.want_xml, bytes(got), "a slow download")
        self.delete(job)


class Canceller(Actor):
    """Starts calls and jobs and breaks them off."""

    def own_fault(self, error: grpc.RpcError) -> bool:
        return error.code() == grpc.StatusCode.CANCELLED

    def act(self):
        self.settle()
        self.rng.choice((self.break_upload, self.break_download, self.break_stream, self.break_watch, self.cancel_job, self.cancel_job))()

    def later(self):
        time.sleep(self.rng.uniform(0, 0.15))

    def break_upload(self):
        data = self.rng.randbytes(1 << 21)
        name = self.client.upload_name(data)
        with self.ledger.lock:
            self.ledger.seen.add(self.client.blob(data).sha256)

        def messages():
            for at in range(0, len(data), CHUNK):
                yield self.client.bs.WriteRequest(resource_name=name if at == 0 else "", write_offset=at, data=data[at : at + CHUNK], finish_write=at + CHUNK >= len(data))

        call = self.client.bytes.Write.future(messages(), timeout=60)
        self.later()
        call.cancel()
        self.ledger.count("uploads cancelled")

    def break_download(self):
        entry = self.rng.choice(self.catalog.large)
        blob = world.ensure_model(self.client, self.ledger, entry).bin
        call = self.client.bytes.Read(self.client.bs.ReadRequest(resource_name=f"blobs/{blob.sha256}/{blob.size_bytes}"), timeout=60)
        next(call)
        self.later()
        call.cancel()
        self.ledger.count("downloads cancelled")

    def break_stream(self):
        entry = self.rng.choice(self.catalog.all)
        pb = self.client.pb

        def requests():
            yield pb.CompressStreamRequest(open=pb.CompressStreamOpen(options=pb.CompressionOptions(**entry.options), xml_size=len(entry.xml), bin_size=len(entry.bin)))
            yield pb.CompressStreamRequest(xml_chunk=entry.xml)
            for at in range(0, len(entry.bin), CHUNK):
                yield pb.CompressStreamRequest(bin_chunk=entry.bin[at : at + CHUNK])

        call = self.client.compression.CompressStream(requests(), timeout=60)
        self.later()
        call.cancel()
        self.ledger.count("streams cancelled")

    def break_watch(self):
        job = self.submit(self.entry())
        call = self.client.compression.WatchOperation(self.client.pb.WatchOperationRequest(name=job.name), timeout=60)
        next(call)
        call.cancel()
        self.ledger.count("watches cancelled")

    def cancel_job(self):
        job = self.submit(self.rng.choice(self.catalog.large))
        self.later()
        job.cancelled = True
        self.client.operations.CancelOperation(self.client.lro.CancelOperationRequest(name=job.name), timeout=30)
        self.settle()
        self.delete(job)


class Crasher(Actor):
    """Clients that die without a word, and strangers that speak no gRPC."""

    def act(self):
        self.rng.choice((self.kill_command, self.vanish, self.babble))()
        time.sleep(0.1)

    def kill_command(self):
        out = self.arena.work / self.name
        out.mkdir(exist_ok=True)
        entry = self.entry()
        with self.ledger.lock:
            self.ledger.seen |= {self.client.blob(d).sha256 for d in (entry.xml, entry.bin, entry.want_xml, entry.want_bin)}
        process = subprocess.Popen([self.arena.build / "client/cli/ovpress", "compress", entry.path, "-o", out / "m.xml", "--quiet", f"--server=127.0.0.1:{self.arena.server.port}", *entry.flags], stderr=subprocess.DEVNULL)
        time.sleep(self.rng.uniform(0, 0.3))
        process.kill()
        process.wait()
        if (out / "m.xml").exists():
            if not (out / "m.bin").exists():
                raise Violation("a killed client left an .xml without its .bin")
            entry.right((out / "m.xml").read_bytes(), (out / "m.bin").read_bytes(), "the output of a killed client")
        shutil.rmtree(out)
        self.ledger.count("command lines killed")

    def vanish(self):
        """The connection is reset in the middle of an upload."""
        proxy = world.faults.Proxy(self.arena.server.port, self.rng.randrange(1 << 30), 200_000, 0, 65536)
        client = self.arena.server.client(proxy.port)
        data = self.rng.randbytes(1 << 21)
        try:
            world.upload(client, self.ledger, data, False, None, 0, CHUNK, 30)
        except grpc.RpcError:
            pass
        client.channel.close()
        proxy.close()
        self.ledger.count("connections reset in an upload")

    def babble(self):
        with socket.socket() as raw:
            raw.settimeout(5)
            try:
                raw.connect(("127.0.0.1", self.arena.server.port))
                if self.rng.random() < 0.5:
                    raw.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
                raw.sendall(self.rng.randbytes(self.rng.randrange(1, 5000)))
                time.sleep(self.rng.uniform(0, 0.1))
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            except OSError:
                pass
        self.ledger.count("connections of babble")


class Streamer(Actor):
    """CompressStream: all in one call."""

    def own_fault(self, error: grpc.RpcError) -> bool:
        # Jobs and streams share the memory that the server gives.
        return error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED

    def act(self):
        kills.stream(self.client, self.entry())


class Command(Actor):
    """`ovpress compress --server`: goes on by itself while the server comes
    back, so only a full disk excuses it."""

    def act(self):
        out = self.arena.work / self.name
        out.mkdir(exist_ok=True)
        entry = self.entry()
        with self.ledger.lock:
            self.ledger.seen |= {self.client.blob(d).sha256 for d in (entry.xml, entry.bin, entry.want_xml, entry.want_bin)}
        fulls = self.arena.fulls
        done = subprocess.run([self.arena.build / "client/cli/ovpress", "compress", entry.path, "-o", out / "m.xml", "--quiet", f"--server=127.0.0.1:{self.arena.server.port}", *entry.flags], capture_output=True, text=True, timeout=180)
        found = {p.name: p.read_bytes() for p in out.iterdir()}
        shutil.rmtree(out)
        if done.returncode == 0:
            if found.keys() != {"m.xml", "m.bin"}:
                raise Violation(f"the command ended with 0 and {sorted(found)}")
            entry.right(found["m.xml"], found["m.bin"], "the command")
            return
        if found:
            raise Violation(f"the command failed and left {sorted(found)}: {done.stderr}")
        if done.returncode != 1 or done.stderr.count("\n") != 1:
            raise Violation(f"the command: exit {done.returncode}, {done.stderr}")
        if self.arena.fulls == fulls:
            raise Violation(f"the command failed although the server came back: {done.stderr}")
        self.ledger.count("command: errors with a cause")


class Stalled(Actor):
    """Opens an upload and falls silent; the server must end it."""

    def act(self):
        data = self.rng.randbytes(200_000)
        name = self.client.upload_name(data)
        release = threading.Event()

        def messages():
            yield self.client.bs.WriteRequest(resource_name=name, data=data[:CHUNK])
            release.wait(60)

        since = self.arena.generation
        begin = time.monotonic()
        try:
            self.client.bytes.Write(messages(), timeout=60)
            raise Violation("a silent upload ended with OK")
        except grpc.RpcError as error:
            if self.arena.disturbed(since):
                raise
            if error.code() != grpc.StatusCode.DEADLINE_EXCEEDED or "idle_timeout" not in error.details():
                raise Violation(f"a silent upload ended with {error.code().name}: {error.details()}")
            if time.monotonic() - begin > IDLE_SECONDS + 10:
                raise Violation(f"a silent upload was ended after {time.monotonic() - begin:.0f} s")
        finally:
            release.set()


class Keeper(Actor):
    """Looks after the protected uploads and the health of the server."""

    def act(self):
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        since = self.arena.generation
        begin = time.monotonic()
        health = health_pb2_grpc.HealthStub(self.client.channel)
        health.Check(health_pb2.HealthCheckRequest(service="ovpress.v1.WeightCompression"), timeout=30)
        with self.ledger.lock:
            uploads = dict(self.ledger.uploads)
        if not self.arena.disturbed(since):
            self.arena.slowest_health = max(self.arena.slowest_health, time.monotonic() - begin)
        blobs = [self.client.pb.Blob(sha256=d, size_bytes=n) for d, n in uploads.items()]
        missing = self.client.compression.FindMissingBlobs(self.client.pb.FindMissingBlobsRequest(blobs=blobs), timeout=30).missing_blobs
        with self.ledger.lock:
            lost = [b for b in missing if b.sha256 in self.ledger.uploads]
        if lost:
            raise Violation(f"{len(lost)} acknowledged uploads in use are gone, the first is {lost[0].sha256}")
        if uploads:
            digest, size = self.rng.choice(sorted(uploads.items()))
            data = world.read(self.client, self.client.pb.Blob(sha256=digest, size_bytes=size))
            if self.client.blob(data).sha256 != digest:
                raise Violation(f"the upload {digest} comes back with other bytes")
        time.sleep(0.5)


class Janitor(Actor):
    """Walks the list and deletes what ended more than a minute ago: jobs of
    command lines, which nobody else knows, and those that were judged."""

    def act(self):
        time.sleep(1)
        operations, token = self.client.operations, ""
        old = []
        while True:
            page = operations.ListOperations(self.client.lro.ListOperationsRequest(page_size=200, page_token=token), timeout=30)
            old += [o for o in page.operations if o.done and time.time() - self.client.metadata(o).create_time.seconds > 60]
            token = page.next_page_token
            if not token:
                break
        for operation in old[:100]:
            with self.ledger.lock:
                job = self.ledger.jobs.get(operation.name)
            if job is None:
                operations.DeleteOperation(self.client.lro.DeleteOperationRequest(name=operation.name), timeout=30)
            elif job.judged:
                self.delete(job)
            self.ledger.count("jobs cleared away")


CAST = [Good, Good, Uploader, Behindproxy, Slow, Canceller, Crasher, Streamer, Command, Stalled, Keeper, Janitor]


# --- the two parts ---


def storm(arena: Arena, seconds: float):
    """Kills, drains and full disks, a few seconds apart."""
    rng = random.Random(f"{arena.seed} storm")
    until = time.monotonic() + seconds
    server = arena.server
    first = ["kill", "drain", "full"]  # of each at least one, also in a short storm
    while time.monotonic() < until:
        time.sleep(rng.uniform(1, 5))
        what = first.pop(0) if first else rng.choices(("kill", "drain", "full"), (5, 3, 2))[0]
        arena.fault(True)
        try:
            if what == "full":
                arena.fulls += 1
                server.full.touch()
                time.sleep(rng.uniform(0.2, 3))
                server.full.unlink()
                arena.ledger.count("times that the disk was full")
            else:
                if what == "kill":
                    arena.kills += 1
                    server.kill()
                    arena.ledger.count("SIGKILLs")
                else:
                    server.stop(60)
                    arena.ledger.count("drains")
                time.sleep(rng.uniform(0, 1))
                server.start(f"--drain-seconds={rng.choice((0, 1, 5))}")
        except Violation as error:
            arena.ledger.violation(f"storm: {error}")
            if not server.alive():
                server.start()
        finally:
            # What a call that began before has to do with it may take a moment.
            time.sleep(0.3)
            arena.fault(False)
        if not server.alive():
            arena.ledger.violation(f"storm: the server ended by itself: {server.tail()}")
            server.start()


def growth(samples: list[dict[str, int]], seconds: float) -> list[str]:
    """What grew by more than a tenth after warm-up: the first third of the
    samples. Compared are moving medians, so that one odd sample is none."""
    if not samples:
        return ["no sample was taken"]
    if seconds < LIFE_SECONDS_MIN:
        return [f"{name} came to {most}, at most {bound} in a short life" for name, bound in SHORT_LIFE_BOUNDS.items() if (most := max(s[name] for s in samples)) > bound]
    width = 5
    after = samples[len(samples) // 3 :]
    if len(after) <= width:
        return [f"only {len(samples)} quiet moments: too few to see growth"]
    grown = []
    for name in samples[0]:
        medians = [statistics.median(s[name] for s in after[i : i + width]) for i in range(len(after) - width + 1)]
        if medians[-1] > GROWTH * medians[0]:
            grown.append(f"{name} grew from {medians[0]:.0f} to {medians[-1]:.0f}")
    return grown


def life(arena: Arena, actors: list[Actor], seconds: float) -> list[dict[str, int]]:
    round_seconds = min(30.0, max(2.5, seconds / 24))
    until = time.monotonic() + seconds
    samples = []
    pid = arena.server.process.pid
    while time.monotonic() < until and len(arena.ledger.violations) < 20:
        time.sleep(round_seconds)
        arena.pause(actors)
        if not arena.server.alive() or arena.server.process.pid != pid:
            arena.ledger.violation(f"life: the server ended by itself: {arena.server.tail()}")
            break
        samples.append(arena.server.use())
        print(f"  quiet moment {len(samples)}: {samples[-1]}", flush=True)
        arena.resume()
    return samples


def settle_all(arena: Arena, actors: list[Actor], where: str):
    """Every job that was ever acknowledged and not deleted has its right end."""
    client = arena.server.client()
    for job in list(arena.ledger.jobs.values()):
        try:
            operation = world.wait(client, job, 90)
            if operation is None:
                raise Violation(f"{job.name} is not done after 90 s")
            if not job.judged:
                world.check_end(client, arena.ledger, job, operation, arena.kills, excused=arena.fulls > job.full_before)
                job.judged = True
        except Violation as error:
            arena.ledger.violation(f"{where}: {error}")
    client.channel.close()
    for actor in actors:
        actor.open_jobs.clear()


def run(build: pathlib.Path, work: pathlib.Path, seconds: float, seed: int) -> bool:
    arena = Arena(build, work, seed)
    ledger = arena.ledger
    begin = time.monotonic()
    arena.server.start()
    actors = [kind(arena, i) for i, kind in enumerate(CAST)]
    for actor in actors:
        actor.start()
    samples: list[dict[str, int]] = []
    try:
        storm(arena, 0.4 * seconds)
        arena.pause(actors)
        settle_all(arena, actors, "storm")
        arena.server.stop()
        print(f"storm over after {time.monotonic() - begin:.0f} s: {world.audit(arena.server.data, ledger, 'storm')}", flush=True)
        arena.server.start()
        arena.resume()
        samples = life(arena, actors, 0.6 * seconds)
        arena.pause(actors)
        settle_all(arena, actors, "life")
        arena.server.stop()
        print(f"life over after {time.monotonic() - begin:.0f} s: {world.audit(arena.server.data, ledger, 'life')}", flush=True)
        world.audit_empty(arena.server, ledger, "sweep")
    except Violation as error:
        ledger.violation(str(error))
    except Exception:  # noqa: BLE001
        ledger.violation(traceback.format_exc())
    finally:
        with arena.lock:
            arena.over = True
            arena.lock.notify_all()
        arena.server.kill()
    for what in growth(samples, 0.6 * seconds):
        ledger.violation(f"life: {what}")
    print(f"mixed soak: seed {seed}, {time.monotonic() - begin:.0f} s, {arena.server.starts} starts, slowest health check {1000 * arena.slowest_health:.0f} ms")
    for name, count in sorted(ledger.counts.items()):
        print(f"  {count:7} {name}")
    for name in samples[0] if samples else ():
        values = [s[name] for s in samples]
        print(f"  {name}: first {values[0]}, after warm-up {values[len(values) // 3]}, last {values[-1]}, most {max(values)} ({len(values)} quiet moments)")
    print(f"{'FAIL' if ledger.violations else 'ok  '} soak: {len(ledger.violations)} violations", flush=True)
    return not ledger.violations
