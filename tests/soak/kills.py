"""SIGKILL at random moments. Each trial does something, kills the server in the
middle of it, starts it again on the same folder, and demands: it comes up; what
it acknowledged is there; unfinished uploads resume from where it said; every
job ends with the right bytes; nothing is left in tmp. Folders live for many
trials, so that damage would add up; then all is audited and swept to nothing."""

from __future__ import annotations

import concurrent.futures
import pathlib
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import traceback
import uuid

import grpc

import world
from world import Job, Ledger, Server, Violation

CHUNK = 1 << 16
PHASES = ("upload", "queue", "job", "publish", "download", "stream", "start", "client")
TRIALS_PER_FOLDER = 25


class Worker:
    """One server and one folder at a time."""

    def __init__(self, build: pathlib.Path, work: pathlib.Path, catalog: world.Catalog, seed: int):
        self.build, self.catalog = build, catalog
        self.work = pathlib.Path(tempfile.mkdtemp(dir=work))
        self.rng = random.Random(seed)
        self.ledger = Ledger()
        self.number = 0
        self.kills = 0
        self.server: Server | None = None
        self.totals: dict[str, int] = {}
        # Seconds within which the kill comes; they follow the machine's speed so
        # that about every other kill hits the middle.
        self.reach = {"upload": 0.05, "queue": 0.1, "job": 0.15, "cancelled job": 0.01, "download": 0.01, "stream": 0.2}

    # -- the life of a folder

    def begin_folder(self):
        self.number += 1
        self.ledger.uploads.clear()
        self.ledger.jobs.clear()
        self.ledger.seen.clear()
        self.server = Server(self.build, self.work / f"data{self.number}", self.rng, "--threads=1", "--idle-timeout=10")
        self.server.start()

    def end_folder(self):
        where = f"folder {self.number}"
        client = self.server.client()
        for job in list(self.ledger.jobs.values()):
            operation = world.wait(client, job, 60)
            if operation is None:
                raise Violation(f"{where}: {job.name} does not end")
        client.channel.close()
        self.server.stop()
        for name, count in world.audit(self.server.data, self.ledger, where).items():
            self.totals[name] = self.totals.get(name, 0) + count
        world.audit_empty(self.server, self.ledger, where)
        shutil.rmtree(self.server.data)
        self.ledger.count("folders audited and swept")

    def kill(self):
        self.server.kill()
        self.kills += 1
        self.ledger.count("SIGKILLs")

    def restart(self):
        self.server.start()
        left = list((self.server.data / "store/corrupt").iterdir())
        if left:
            raise Violation(f"{len(left)} blobs are damaged after a kill: {left[0].name}")

    def dying(self, phase: str, what, *arguments):
        """Runs `what` and kills the server at a random moment of it; the errors
        that this makes are none. What it returns, or None if it came to an
        error."""
        timer = threading.Timer(self.within(self.reach[phase]), self.kill)
        timer.start()
        try:
            answer = what(*arguments)
            self.ledger.count("calls that ended before the kill")
            self.reach[phase] *= 0.9
            return answer
        except grpc.RpcError as error:
            if not error.details():
                raise Violation(f"an error without a message: {error.code()}")
            self.ledger.count("calls cut off by the kill")
            self.reach[phase] *= 1.1
            return None
        finally:
            timer.join()

    def within(self, longest: float) -> float:
        return self.rng.uniform(0, longest)

    def finish_job(self, client, job: Job):
        operation = world.wait(client, job, 60)
        if operation is None:
            raise Violation(f"{job.name} is not done a minute after the restart")
        if world.check_end(client, self.ledger, job, operation, self.kills):
            result = world.response(client, operation)
            job.entry.right(world.read(client, result.model.xml), world.read(client, result.model.bin), job.name)

    # -- trials

    def trial(self, phase: str):
        getattr(self, f"phase_{phase}")()
        # All that was ever acknowledged in this folder.
        client = self.server.client()
        with self.ledger.lock:
            uploads = dict(self.ledger.uploads)
            jobs = list(self.ledger.jobs.values())
        names = [client.pb.Blob(sha256=digest, size_bytes=size) for digest, size in uploads.items()]
        missing = client.compression.FindMissingBlobs(client.pb.FindMissingBlobsRequest(blobs=names), timeout=30).missing_blobs
        if missing:
            raise Violation(f"{len(missing)} acknowledged uploads are gone, the first is {missing[0].sha256}")
        if uploads:
            digest, size = self.rng.choice(sorted(uploads.items()))
            data = world.read(client, client.pb.Blob(sha256=digest, size_bytes=size))
            if client.blob(data).sha256 != digest:
                raise Violation(f"the upload {digest} comes back with other bytes")
        for job in jobs:
            if not job.deleted:
                world.get(client, job)
        client.channel.close()

    def phase_upload(self):
        data = self.rng.randbytes(self.rng.randrange(1, 8 << 20))
        client = self.server.client()
        name = client.upload_name(data)
        # What an answer said to be durable must not shrink.
        first = self.rng.randrange(0, len(data))
        promised = 0
        if self.rng.random() < 0.5:
            promised = client.write(name, data[:first], finish=False).committed_size
        acknowledged = self.dying("upload", lambda: world.upload(client, self.ledger, data, True, name, promised, CHUNK)) is not None
        client.channel.close()
        self.restart()
        client = self.server.client()
        if not acknowledged:
            try:
                status = client.bytes.QueryWriteStatus(client.bs.QueryWriteStatusRequest(resource_name=name), timeout=30)
                at = status.committed_size
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.NOT_FOUND:
                    raise
                at = 0
            if at < promised:
                raise Violation(f"{promised} bytes of an upload were committed, after the kill only {at}")
            self.ledger.count("uploads resumed past 0" if at > 0 else "uploads begun again")
            world.upload(client, self.ledger, data, True, name, at)
        else:
            self.ledger.count("uploads acknowledged before the kill")
        if world.read(client, client.blob(data)) != data:
            raise Violation("an upload comes back with other bytes")
        client.channel.close()

    def phase_queue(self):
        """Several submissions, with and without an answer; each request_id is
        one job in the end."""
        entries = [self.rng.choice(self.catalog.small) for _ in range(4)]
        client = self.server.client()
        for entry in entries:
            world.ensure_model(client, self.ledger, entry)
        ids = [str(uuid.uuid4()) for _ in entries]
        known: dict[str, str] = {}

        def submit_all():
            for entry, request in zip(entries, ids):
                known[request] = world.submit(client, self.ledger, entry, self.kills, request_id=request, ignore_result_cache=True).name

        self.dying("queue", submit_all)
        client.channel.close()
        self.restart()
        client = self.server.client()
        for entry, request in zip(entries, ids):
            job = world.submit(client, self.ledger, entry, self.kills, request_id=request, ignore_result_cache=True)
            if known.get(request, job.name) != job.name:
                raise Violation(f"one request_id, two jobs: {known[request]} and {job.name}")
            self.finish_job(client, job)
        client.channel.close()

    def phase_job(self):
        entry = self.rng.choice(self.catalog.large)
        client = self.server.client()
        job = world.submit(client, self.ledger, entry, self.kills, ignore_result_cache=True)
        cancel = self.rng.random() < 0.2
        if cancel:
            time.sleep(self.within(0.05))
            job.cancelled = True
            client.operations.CancelOperation(client.lro.CancelOperationRequest(name=job.name), timeout=30)
        self.dying("cancelled job" if cancel else "job", lambda: world.wait(client, job, 30))
        client.channel.close()
        self.restart()
        client = self.server.client()
        self.finish_job(client, job)
        client.channel.close()

    def phase_publish(self):
        """Dies at the Nth rename, sync, write, open or truncate below the data
        folder while a job ends or an upload is published."""
        kind, most = self.rng.choice((("rename", 8), ("sync", 40), ("write", 60), ("open", 50)))
        error = self.rng.choice(("KILL", "TORN")) if kind == "write" else "KILL"
        self.server.stop()
        entry = self.rng.choice(self.catalog.small)
        job, died = None, not self.server.start(kind=kind, error=error, nth=self.rng.randrange(1, most))
        if not died:
            client = self.server.client()
            try:
                job = world.submit(client, self.ledger, entry, self.kills, ignore_result_cache=True)
                world.upload(client, self.ledger, self.rng.randbytes(70000))
                world.wait(client, job, 30)
            except grpc.RpcError as failure:
                if not failure.details():
                    raise Violation(f"an error without a message: {failure.code()}")
            client.channel.close()
        died = died or not self.server.alive()
        self.ledger.count("deaths at a chosen call" if died else "chosen calls that never came")
        if died and self.server.process.wait() != -signal.SIGKILL:
            raise Violation(f"the server ended with {self.server.process.returncode}: {self.server.tail()}")
        self.kill()
        self.restart()
        client = self.server.client()
        self.finish_job(client, job or world.submit(client, self.ledger, entry, self.kills, ignore_result_cache=True))
        client.channel.close()

    def phase_download(self):
        entry = self.rng.choice(self.catalog.large)
        client = self.server.client()
        job = world.submit(client, self.ledger, entry, self.kills)
        operation = world.wait(client, job, 60)
        if operation is None or not world.check_end(client, self.ledger, job, operation, self.kills):
            raise Violation(f"{job.name} did not end without any kill")
        blob = world.response(client, operation).model.bin
        got = bytearray()

        def download():
            for message in client.bytes.Read(client.bs.ReadRequest(resource_name=f"blobs/{blob.sha256}/{blob.size_bytes}"), timeout=60):
                got.extend(message.data)
            return True

        whole = self.dying("download", download)
        if whole and len(got) != blob.size_bytes:
            raise Violation(f"a download of {blob.size_bytes} bytes ended with OK after {len(got)}")
        client.channel.close()
        self.restart()
        client = self.server.client()
        got += world.read(client, blob, len(got))
        entry.right(entry.want_xml, bytes(got), "a resumed download")
        client.channel.close()

    def phase_stream(self):
        entry = self.rng.choice(self.catalog.all)
        client = self.server.client()
        if self.dying("stream", stream, client, entry):
            self.ledger.count("streams that ended before the kill")
        client.channel.close()
        self.restart()
        left = list((self.server.data / "store/tmp").iterdir())
        if left:
            raise Violation(f"left in tmp after a killed stream: {left[0].name}")
        client = self.server.client()
        stream(client, entry)
        client.channel.close()

    def phase_start(self):
        """Killed while it recovers from the last kill, several times."""
        client = self.server.client()
        jobs = [world.submit(client, self.ledger, self.rng.choice(self.catalog.small), self.kills, ignore_result_cache=True) for _ in range(2)]
        client.channel.close()
        self.kill()
        for _ in range(2):
            self.server.launch()
            time.sleep(self.within(0.08))
            self.kill()
        self.restart()
        client = self.server.client()
        for job in jobs:
            self.finish_job(client, job)
        client.channel.close()

    def phase_client(self):
        """The client dies: the server keeps nothing of it but what it said."""
        entry = self.rng.choice(self.catalog.large)
        out = self.work / f"out{self.number}"
        out.mkdir(exist_ok=True)
        command = [self.build / "client/cli/ovpress", "compress", entry.path, "-o", out / "m.xml", "--quiet", f"--server=127.0.0.1:{self.server.port}", *entry.flags]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        time.sleep(self.within(0.5))
        process.kill()
        process.wait()
        self.ledger.count("clients killed")
        with self.ledger.lock:
            self.ledger.seen |= {world.integration.hashlib.sha256(d).hexdigest() for d in (entry.xml, entry.bin, entry.want_xml, entry.want_bin)}
        xml, bin_ = out / "m.xml", out / "m.bin"
        if xml.exists() and bin_.exists():
            entry.right(xml.read_bytes(), bin_.read_bytes(), "the output of a killed client")
        elif xml.exists():
            raise Violation("a killed client left an .xml without its .bin")
        shutil.rmtree(out)
        # A job that it submitted goes on; nobody waits for it in the transfers.
        for _ in range(200):
            if self.server.metrics().get("ovpress_transfers_active") == 0:
                break
            time.sleep(0.05)
        else:
            raise Violation("the transfer of a killed client is still open after 10 s")
        self.kill()
        self.restart()


def stream(client, entry) -> bool:
    """One CompressStream call with the right bytes back, or grpc.RpcError."""
    pb = client.pb

    def requests():
        blob = client.blob(entry.bin)
        yield pb.CompressStreamRequest(open=pb.CompressStreamOpen(options=pb.CompressionOptions(**entry.options), xml_size=len(entry.xml), bin_size=len(entry.bin), bin_sha256=blob.sha256))
        for at in range(0, len(entry.xml), CHUNK):
            yield pb.CompressStreamRequest(xml_chunk=entry.xml[at : at + CHUNK])
        for at in range(0, len(entry.bin), CHUNK):
            yield pb.CompressStreamRequest(bin_chunk=entry.bin[at : at + CHUNK])

    xml, bin_, done = bytearray(), bytearray(), False
    for message in client.compression.CompressStream(requests(), timeout=90):
        xml += message.xml_chunk
        bin_ += message.bin_chunk
        done = done or message.HasField("result")
    if not done:
        raise Violation("a stream ended with OK without a result")
    entry.right(bytes(xml), bytes(bin_), "a stream")
    return True


def run(build: pathlib.Path, work: pathlib.Path, trials: int, seed: int, workers: int, phases: list[str]) -> bool:
    catalog = world.Catalog(build / "client/cli/ovpress", work)
    begin = time.monotonic()
    done = {phase: [0, 0] for phase in PHASES}
    phases = phases or list(PHASES)
    order = [phases[i % len(phases)] for i in range(trials)]
    random.Random(seed).shuffle(order)
    lock = threading.Lock()

    def work_on(worker: Worker, share: list[str]):
        for at in range(0, len(share), TRIALS_PER_FOLDER):
            try:
                worker.begin_folder()
                for phase in share[at : at + TRIALS_PER_FOLDER]:
                    try:
                        worker.trial(phase)
                        ok = True
                    except Exception as error:  # noqa: BLE001
                        ok = False
                        text = str(error) if isinstance(error, Violation) else traceback.format_exc()
                        worker.ledger.violation(f"{phase} (seed {seed}, folder {worker.number}): {text}\n  log: {worker.server.tail()}")
                        worker.server.kill()
                        worker.server.start()
                    with lock:
                        done[phase][0] += 1
                        done[phase][1] += not ok
                worker.end_folder()
            except Exception:  # noqa: BLE001
                worker.ledger.violation(f"folder {worker.number}: {traceback.format_exc()}")
            finally:
                worker.server.kill()
            print(f"  {sum(n for n, _ in done.values())} of {trials} trials, {time.monotonic() - begin:.0f} s", flush=True)

    pool_of = [Worker(build, work, catalog, seed * 1000 + i) for i in range(workers)]
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for future in [pool.submit(work_on, worker, order[i::workers]) for i, worker in enumerate(pool_of)]:
            future.result()
    counts: dict[str, int] = {}
    for worker in pool_of:
        for source in (worker.ledger.counts, worker.totals):
            for name, count in source.items():
                counts[name] = counts.get(name, 0) + count
    violations = [v for worker in pool_of for v in worker.ledger.violations]
    print(f"kill trials: {trials}, seed {seed}, {time.monotonic() - begin:.0f} s")
    for name, count in sorted(counts.items()):
        print(f"  {count:7} {name}")
    bad = 0
    for phase, (count, failed) in done.items():
        if count == 0:
            continue
        bad += failed > 0
        print(f"{'FAIL' if failed else 'ok  '} killed during {phase}: {count} trials, {failed} failed", flush=True)
    print(f"{'FAIL' if violations else 'ok  '} kills: {len(violations)} violations")
    return not violations and not bad
