#!/usr/bin/env python3
"""Several real servers on one PostgreSQL and one SeaweedFS: any of them answers any call, and nothing is lost when servers, the
database or the object store are killed, frozen or restarted.

  tests/cluster/run.py --build build/ci [--chaos-seconds 30] [--seed 1] [--service] [NAME...]

--service also runs the system tests of tests/integration against a server on the shared stores.
The last line is "N passed, N failed"."""

from __future__ import annotations

import argparse
import hashlib
import json
import importlib.util
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback

import grpc

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/integration"), str(ROOT / "tests/cluster")]
import harness  # noqa: E402
import object_store  # noqa: E402
import proxies  # noqa: E402

LEASE = 3  # seconds; the default of 30 would make each death a long wait
FAKETIME = pathlib.Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
# A codebook of 256 values takes seconds for 256 MB of weights: with other modes
# a job is over before anybody can cancel it or kill who runs it.
CODEBOOK = json.dumps([(i - 127) / 100 for i in range(256)])
OPTIONS = {"mode": "codebook", "codebook": CODEBOOK.encode(), "group_size": 64}


class Postgres(object_store.Postgres):
    schemas = 0

    def do(self, action: str):
        subprocess.run([ROOT / "tests/cluster/postgres", action, self.folder], check=True, stdout=subprocess.DEVNULL)

    def new_schema(self) -> str:
        self.schemas += 1
        return self.schema(f"s{self.schemas}")

    def value(self, sql: str) -> str:
        """Of the schema that was made last."""
        return subprocess.run(["psql", f"{self.address} options='-c search_path=s{self.schemas}'", "-Atc", sql], check=True, capture_output=True, text=True).stdout.strip()


class Seaweed(object_store.Seaweed):
    prefixes = 0

    def flags(self) -> list[str]:
        self.prefixes += 1
        return [f"--blob-store=s3://store/p{self.prefixes}", f"--s3-endpoint={self.endpoint}", "--s3-path-style"]


class Replica(harness.Server):
    """A server of the cluster; `shift` seconds beside the right time."""

    shift = 0

    def start(self):
        old = dict(os.environ)
        try:
            os.environ.update(AWS_ACCESS_KEY_ID=object_store.KEY, AWS_SECRET_ACCESS_KEY=object_store.SECRET)
            if self.shift:
                os.environ.update(LD_PRELOAD=str(FAKETIME), FAKETIME=f"{self.shift:+d}", FAKETIME_DONT_FAKE_MONOTONIC="1", FAKETIME_DONT_RESET="1")
            return super().start()
        finally:
            os.environ.clear()
            os.environ.update(old)

    def signal(self, number):
        self.process.send_signal(number)

    def metric(self, name: str) -> float:
        return sum(float(line.rsplit(" ", 1)[1]) for line in self.page("/metrics")[1].splitlines() if re.match(name + r"[ {]", line))

    def text(self) -> str:
        return self.data.with_suffix(".log").read_text()


class Cluster:
    def __init__(self, c: "Context", count: int = 3, shifts=(0, 0, 0), flags=()):
        shared = [f"--job-store={c.postgres.new_schema()}", *c.seaweed.flags(), f"--lease={LEASE}", "--threads=1", "--drain-seconds=0", *flags]
        self.replicas = []
        for i in range(count):
            replica = Replica(c.server_binary, pathlib.Path(tempfile.mkdtemp(dir=c.work)) / "data", *shared)
            replica.shift = shifts[i % len(shifts)]
            self.replicas.append(replica)

    def __enter__(self):
        # At the same time, on an empty database and an empty bucket.
        errors = []

        def start(replica):
            try:
                replica.start()
            except Exception as error:  # noqa: BLE001
                errors.append(error)

        threads = [threading.Thread(target=start, args=(r,)) for r in self.replicas]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            self.__exit__()
            raise errors[0]
        return self.replicas

    def __exit__(self, *_):
        for replica in self.replicas:
            if replica.process and replica.process.poll() is None:
                replica.signal(signal.SIGCONT)
                replica.kill()


class Context(harness.Context):
    postgres: Postgres
    seaweed: Seaweed
    chaos_seconds = 30
    seed = 1

    def cluster(self, *args, **kwargs) -> Cluster:
        return Cluster(self, *args, **kwargs)

    def model(self, count: int = 64):
        path, xml, data = self.large_model_files(count)
        table = self.work / "codebook.json"
        table.write_text(CODEBOOK)
        return xml, data, hashlib.sha256(self.local(path, "--mode=codebook", f"--codebook={table}", "--group-size=64")[1]).hexdigest()


def get(client, job):
    return client.operations.GetOperation(client.lro.GetOperationRequest(name=job.name), timeout=30)


def runner_of(c, replicas, job, timeout: float = 20):
    """The replica that runs the job, by what its log says."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        running = [r for r in replicas if r.process.poll() is None and r.metric("ovpress_jobs_running") > 0]
        if len(running) == 1:
            return running[0]
        time.sleep(0.02)
    raise AssertionError("nobody runs the job")


def slow_job(client, model):
    return client.submit(model, ignore_result_cache=True, options=OPTIONS)


def finished(replicas) -> float:
    return sum(r.metric("ovpress_jobs_total") for r in replicas if r.process.poll() is None)


def finishes(replicas, count: int) -> bool:
    """Whether so many ends were stored; a server counts one a moment after others can see it."""
    harness.wait_until(lambda: finished(replicas) >= count)
    time.sleep(0.3)
    return finished(replicas) == count


def test_any_replica_serves_any_call(c: Context):
    xml, data, digest = c.model()
    with c.cluster() as replicas:
        one, two, three = (r.client() for r in replicas)
        # An upload that broke on one replica goes on at another.
        name = one.upload_name(data)
        one.write(name, data[: len(data) // 3], finish=False)
        status = two.bytes.QueryWriteStatus(two.bs.QueryWriteStatusRequest(resource_name=name), timeout=30)
        assert 0 < status.committed_size <= len(data) // 3, status
        replicas[0].kill()
        assert two.write(name, data, start=status.committed_size).committed_size == len(data)
        model = two.pb.ModelBlobs(xml=two.upload(xml), bin=two.blob(data))
        assert not three.compression.FindMissingBlobs(three.pb.FindMissingBlobsRequest(blobs=[model.xml, model.bin])).missing_blobs
        replicas[0].start()
        one = replicas[0].client()
        job = one.submit(model, request_id="r", options=OPTIONS)
        assert two.submit(model, request_id="r", options=OPTIONS).name == job.name
        seen = list(three.compression.WatchOperation(three.pb.WatchOperationRequest(name=job.name), timeout=60))
        assert seen[-1].done
        response = one.result(two.wait(job))
        assert response.model.bin.sha256 == digest
        for client in (one, two, three):
            assert hashlib.sha256(client.read(response.model.bin)).hexdigest() == digest
            assert client.submit(model, options=OPTIONS).done, "the result is not found"
            assert len(client.operations.ListOperations(client.lro.ListOperationsRequest()).operations) >= 1
        # Cancelled from elsewhere, within two seconds.
        job = slow_job(one, model)
        running = runner_of(c, replicas, job)
        other = next(r for r in replicas if r is not running).client()
        other.operations.CancelOperation(other.lro.CancelOperationRequest(name=job.name))
        begin = time.monotonic()
        assert other.wait(job).error.code == 1
        assert time.monotonic() - begin < 2.5
        other.operations.DeleteOperation(other.lro.DeleteOperationRequest(name=job.name))
        harness.expect(grpc.StatusCode.NOT_FOUND, lambda: get(one, job))


def test_a_request_id_is_one_output(c: Context):
    with c.cluster(count=2, flags=["--allow-address=s3://models/once/"]) as replicas:
        one, two = (r.client() for r in replicas)
        model = one.upload_model(c.xml, c.bin)

        def submit(client, output: str):
            request = client.pb.CompressModelRequest(model=model, request_id="r", output_address=client.pb.ModelAddress(xml=output) if output else None, options=client.pb.CompressionOptions(mode="int8_sym"))
            return client.compression.CompressModel(request, timeout=30)

        job = submit(one, "s3://models/once/a.xml")
        assert submit(two, "s3://models/once/a.xml").name == job.name
        error = harness.expect(grpc.StatusCode.ALREADY_EXISTS, lambda: submit(two, "s3://models/once/b.xml"))
        assert "request_id r was used with other arguments" in error.details() and job.name in error.details(), error.details()
        one.result(one.wait(job))
        harness.expect(grpc.StatusCode.ALREADY_EXISTS, lambda: submit(one, ""))
        keys = c.seaweed.keys("models")
        assert "once/a.bin" in keys and not any(key.startswith("once/b") for key in keys), keys


def test_a_killed_replica_is_replaced(c: Context):
    xml, data, digest = c.model()
    with c.cluster() as replicas:
        model = replicas[0].client().upload_model(xml, data)
        job = slow_job(replicas[0].client(), model)
        victim = runner_of(c, replicas, job)
        victim.kill()
        begin = time.monotonic()
        alive = [r for r in replicas if r is not victim]
        client = alive[0].client()
        while True:
            metadata = client.metadata(get(client, job))
            if get(client, job).done or metadata.attempt >= 2:
                break
            assert time.monotonic() - begin < LEASE + 5, "nobody took over"
            time.sleep(0.05)
        assert client.result(client.wait(job)).model.bin.sha256 == digest
        assert hashlib.sha256(client.read(client.result(client.wait(job)).model.bin)).hexdigest() == digest


def test_a_frozen_replica_publishes_nothing(c: Context):
    xml, data, digest = c.model()
    with c.cluster() as replicas:
        model = replicas[0].client().upload_model(xml, data)
        job = slow_job(replicas[0].client(), model)
        victim = runner_of(c, replicas, job)
        victim.signal(signal.SIGSTOP)
        alive = [r for r in replicas if r is not victim]
        client = alive[0].client()
        response = client.result(client.wait(job, seconds=LEASE + 40))
        ended = get(client, job)
        assert response.model.bin.sha256 == digest
        assert finishes(alive, 1)
        victim.signal(signal.SIGCONT)
        for _ in range(300):
            if victim.metric("ovpress_jobs_running") == 0:
                break
            time.sleep(0.1)
        assert victim.metric("ovpress_jobs_running") == 0
        # It ended no job, and the job's end is the other one's.
        assert finished(replicas) == 1
        assert get(client, job) == ended
        assert "lost to another server" in victim.text() or "no longer held" in victim.text()
        assert hashlib.sha256(victim.client().read(response.model.bin)).hexdigest() == digest


def test_the_database_restarts_under_running_jobs(c: Context):
    xml, data, digest = c.model()
    with c.cluster() as replicas:
        client = replicas[0].client()
        model = client.upload_model(xml, data)
        for how in ("stop", "kill"):
            job = slow_job(client, model)
            runner_of(c, replicas, job)
            c.postgres.do(how)
            time.sleep(1)
            c.postgres.do("start")
            response = client.result(client.wait(job))
            assert response.model.bin.sha256 == digest
        assert finishes(replicas, 2)


def test_the_object_store_restarts_under_a_running_job(c: Context):
    xml, data, digest = c.model()
    with c.cluster() as replicas:
        client = replicas[0].client()
        model = client.upload_model(xml, data)
        job = slow_job(client, model)
        runner_of(c, replicas, job)
        c.seaweed.stop()
        time.sleep(1)
        c.seaweed.start()
        response = client.result(client.wait(job))
        assert response.model.bin.sha256 == digest
        assert hashlib.sha256(client.read(response.model.bin)).hexdigest() == digest


def test_clocks_may_differ_by_minutes(c: Context):
    assert FAKETIME.exists(), "install libfaketime"
    xml, data, digest = c.model()
    with c.cluster(shifts=(0, 300, -300)) as replicas:
        client = replicas[0].client()
        model = client.upload_model(xml, data)
        jobs = [slow_job(r.client(), model) for r in replicas]
        assert [client.result(client.wait(job)).model.bin.sha256 for job in jobs] == [digest] * 3
        # Nobody took away what another one was at.
        assert all(client.metadata(get(client, job)).attempt == 1 for job in jobs)
        job = slow_job(client, model)
        victim = runner_of(c, replicas, job)
        victim.kill()
        survivor = next(r for r in replicas if r is not victim).client()
        assert survivor.result(survivor.wait(job, seconds=LEASE + 40)).model.bin.sha256 == digest


def test_a_rolling_restart_fails_no_job(c: Context):
    xml, data, digest = c.model()
    with c.cluster() as replicas:
        client = replicas[0].client()
        model = client.upload_model(xml, data)
        jobs = [slow_job(client, model) for _ in range(4)]
        for replica in replicas:
            assert replica.stop() == 0
            replica.start()
        client = replicas[0].client()
        for job in jobs:
            assert client.result(client.wait(job, seconds=90)).model.bin.sha256 == digest


SHARE = "--share-jobs-above=32MiB"  # parts of 4 MiB and more


def parts_done(replica) -> float:
    return replica.metric(r'ovpress_job_part_duration_seconds_count\{outcome="done"\}')


def holder_and_helper(c, replicas, job):
    """Of a shared job: the replica that holds it and one that works on a part of it."""
    holder = runner_of(c, replicas, job)
    for _ in range(500):
        for replica in replicas:
            if replica is not holder and replica.metric("ovpress_parts_helping") > 0:
                return holder, replica
        time.sleep(0.02)
    raise AssertionError("nobody helps")


def test_a_large_job_is_shared_out(c: Context):
    path, xml, data = c.large_model_files()
    modes = (
        ({"mode": "int8_asym"}, ["--mode=int8_asym"]),
        # Scored first, in parts as well.
        ({"mode": "int4_sym", "group_size": 64, "ratio": 0.6}, ["--mode=int4_sym", "--group-size=64", "--ratio=0.6"]),
    )
    with c.cluster(flags=[SHARE]) as replicas:
        client = replicas[0].client()
        model = client.upload_model(xml, data)
        for options, flags in modes:
            before = [parts_done(r) for r in replicas]
            want = c.local(path, *flags)
            job = client.submit(model, options=options, ignore_result_cache=True, settings={"measure_error": True})
            seen = [client.metadata(o) for o in client.compression.WatchOperation(client.pb.WatchOperationRequest(name=job.name), timeout=120)]
            response = client.result(client.wait(job))
            assert (client.read(response.model.xml), client.read(response.model.bin)) == want
            done = [parts_done(r) - b for r, b in zip(replicas, before)]
            assert sum(n > 0 for n in done) >= 2, done
            assert sum(done) >= 6, done
            # Progress counts what all of them did, and never goes back within a phase.
            by_phase = {}
            for metadata in seen:
                by_phase.setdefault(metadata.phase, []).append(metadata.bytes_done)
            assert all(sorted(values) == values for values in by_phase.values()), by_phase
            # The report is that of one server, errors to the last digits aside.
            report = json.loads(client.read(response.report))
            alone = c.work / "alone.json"
            subprocess.run([c.ovpress, "compress", path, "-o", c.work / "local.xml", "--quiet", "--measure-error", f"--report={alone}", *flags], check=True)
            expected = json.loads(alone.read_text())
            assert [w["name"] for w in report["weights"]] == [w["name"] for w in expected["weights"]]
            for ours, theirs in zip(report["weights"], expected["weights"]):
                for key, value in theirs.items():
                    if isinstance(value, float):
                        assert abs(ours[key] - value) <= 1e-9 * abs(value), (key, ours[key], value)
                    else:
                        assert ours[key] == value, key
        # Nothing is left of the parts.
        assert c.postgres.value("SELECT (SELECT count(*) FROM job_parts) + (SELECT count(*) FROM job_rounds)") == "0"


def strike(c: Context, replicas, model, digest: str, blow, at_holder: bool):
    """A shared job whose holder or helper gets the blow: who was struck, one who was not, the job and its end."""
    job = slow_job(replicas[0].client(), model)
    holder, helper = holder_and_helper(c, replicas, job)
    struck, other = (holder, helper) if at_holder else (helper, holder)
    struck.signal(blow)
    client = other.client()
    ended = client.wait(job, seconds=LEASE + 60)
    assert client.result(ended).model.bin.sha256 == digest
    assert client.metadata(ended).attempt == (2 if at_holder else 1)
    if blow == signal.SIGSTOP:
        struck.signal(signal.SIGCONT)
    else:
        struck.kill()
        struck.start()
    return struck, client, job, ended


def test_a_shared_job_outlives_its_helpers(c: Context):
    xml, data, digest = c.model()
    with c.cluster(flags=[SHARE]) as replicas:
        model = replicas[0].client().upload_model(xml, data)
        for blow in (signal.SIGKILL, signal.SIGSTOP):
            helper, client, job, ended = strike(c, replicas, model, digest, blow, at_holder=False)
            # Back from the cold: its part is another's by now.
            harness.wait_until(lambda: helper.metric("ovpress_parts_helping") == 0)
            assert client.result(get(client, job)).model.bin.sha256 == digest
            assert hashlib.sha256(client.read(client.result(ended).model.bin)).hexdigest() == digest


def test_a_shared_job_outlives_its_holder(c: Context):
    xml, data, digest = c.model()
    with c.cluster(flags=[SHARE]) as replicas:
        model = replicas[0].client().upload_model(xml, data)
        for blow in (signal.SIGKILL, signal.SIGSTOP):
            holder, client, job, ended = strike(c, replicas, model, digest, blow, at_holder=True)
            harness.wait_until(lambda: holder.metric("ovpress_jobs_running") == 0)
            assert get(client, job) == ended
            assert hashlib.sha256(client.read(client.result(ended).model.bin)).hexdigest() == digest


def test_a_job_that_servers_die_of_is_not_shared(c: Context):
    xml, data, digest = c.model()
    with c.cluster(flags=[SHARE]) as replicas:
        job = slow_job(replicas[0].client(), replicas[0].client().upload_model(xml, data))
        for _ in range(2):
            holder, _ = holder_and_helper(c, replicas, job)
            holder.kill()
            holder.start()
            # Its restart hands the job to whoever is first.
            harness.wait_until(lambda: sum(r.metric("ovpress_jobs_running") for r in replicas) == 1)
        client = replicas[0].client()
        harness.wait_until(lambda: client.metadata(get(client, job)).attempt == 3)
        before = [parts_done(r) for r in replicas]
        ended = client.wait(job)
        assert client.result(ended).model.bin.sha256 == digest
        assert client.metadata(ended).attempt == 3
        assert [parts_done(r) for r in replicas] == before


def test_a_cancelled_shared_job_stops_everywhere(c: Context):
    xml, data, _ = c.model()
    with c.cluster(flags=[SHARE]) as replicas:
        client = replicas[0].client()
        model = client.upload_model(xml, data)
        job = slow_job(client, model)
        holder, helper = holder_and_helper(c, replicas, job)
        client.operations.CancelOperation(client.lro.CancelOperationRequest(name=job.name))
        begin = time.monotonic()
        assert client.wait(job).error.code == 1
        while sum(r.metric("ovpress_parts_helping") + r.metric("ovpress_jobs_running") for r in replicas) > 0:
            assert time.monotonic() - begin < 4, "they work on"
            time.sleep(0.05)
        # A helper that is told to stop hands its part back; the job goes on.
        job = slow_job(client, model)
        holder, helper = holder_and_helper(c, replicas, job)
        assert helper.stop() == 0
        client = holder.client()
        ended = client.wait(job)
        assert client.metadata(ended).attempt == 1 and client.result(ended)


def chaos(c: Context, xml: bytes, data: bytes, options: dict, digest: str, flags=(), pause: float = 0.3, blow=None, calm=None):
    """Jobs and uploads all the time, while something is killed, frozen or restarted every second or two; or, instead, `blow(chance)` is called,
    which says what it did, and `calm()` at the end."""
    chance = random.Random(c.seed)
    with c.cluster(flags=flags) as replicas:
        model = replicas[0].client().upload_model(xml, data)
        stop = threading.Event()
        jobs, blobs, refused = {}, [], [0]

        def work(worker: int):
            number = 0
            choice = random.Random(worker)
            while not stop.is_set():
                number += 1
                request = f"w{worker}-{number}"
                blob = choice.randbytes(100_000)
                while not stop.is_set():
                    # Until it is acknowledged, at whichever replica answers.
                    client = choice.choice(replicas).client()
                    try:
                        jobs[request] = client.compression.CompressModel(
                            client.pb.CompressModelRequest(model=model, request_id=request, ignore_result_cache=True, options=client.pb.CompressionOptions(**options)), timeout=5
                        ).name
                        if number % 4 == 0:
                            client.write(client.upload_name(blob), blob)
                            blobs.append(blob)
                        break
                    except (grpc.RpcError, AssertionError):
                        refused[0] += 1
                        time.sleep(0.1)
                    finally:
                        client.channel.close()
                time.sleep(pause)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        done = []
        end = time.monotonic() + c.chaos_seconds
        while time.monotonic() < end:
            time.sleep(chance.uniform(0.5, 2))
            if blow:
                done.append(blow(chance))
                continue
            what = chance.choice(["kill", "kill", "freeze", "stop", "database", "crash", "objects"])
            victim = chance.choice(replicas)
            done.append(what)
            if what == "kill":
                victim.kill()
                victim.start()
            elif what == "stop":
                victim.stop()
                victim.start()
            elif what == "freeze":
                victim.signal(signal.SIGSTOP)
                time.sleep(chance.uniform(0.5, 2 * LEASE))
                victim.signal(signal.SIGCONT)
            elif what in ("database", "crash"):
                c.postgres.do("stop" if what == "database" else "kill")
                time.sleep(chance.uniform(0, 2))
                c.postgres.do("start")
            else:
                c.seaweed.stop()
                time.sleep(chance.uniform(0, 1))
                c.seaweed.start()
        stop.set()
        for thread in threads:
            thread.join()
        if calm:
            calm()
        client = replicas[0].client()
        for request, name in jobs.items():
            ended = client.wait(client.lro.Operation(name=name), seconds=120)
            assert client.result(ended).model.bin.sha256 == digest, request
        for blob in blobs:
            assert client.read(client.blob(blob)) == blob
        listed = set()
        token = ""
        while True:
            page = client.operations.ListOperations(client.lro.ListOperationsRequest(page_token=token, page_size=500))
            listed.update(o.name for o in page.operations)
            token = page.next_page_token
            if not token:
                break
        assert listed >= set(jobs.values()) and len(set(jobs.values())) == len(jobs)
        if blow:
            # Nobody died, so all ends are in the counts: one for each job.
            for name in listed - set(jobs.values()):
                client.wait(client.lro.Operation(name=name), seconds=120)
            assert finishes(replicas, len(listed)), (finished(replicas), len(listed))
        parts = sum(parts_done(r) for r in replicas)
        print(f"     chaos: {len(jobs)} jobs, {parts:.0f} parts since the last starts, {len(blobs)} uploads, {refused[0]} calls refused, {len(done)} blows: {' '.join(done)}")


def test_chaos(c: Context):
    options = {"mode": "int4_sym", "group_size": 32}
    chaos(c, c.xml, c.bin, options, hashlib.sha256(c.local(harness.MODEL, "--mode=int4_sym", "--group-size=32")[1]).hexdigest())


def test_chaos_of_shared_jobs(c: Context):
    xml, data, digest = c.model(count=24)
    chaos(c, xml, data, OPTIONS, digest, flags=["--share-jobs-above=8MiB"], pause=3)


# --- bad networks ---


class Through:
    """The stores by way of `door` and `store`: Context.postgres and .seaweed for clusters to be made."""

    def __init__(self, c: Context):
        self.postgres, self.seaweed = c.postgres, c.seaweed
        self.door = proxies.Door(str(c.postgres.folder / ".s.PGSQL.5432"))
        self.store = proxies.BusyStore(c.seaweed.port, c.seed)

    def new_schema(self) -> str:
        direct = self.postgres.new_schema()
        assert f"host={self.postgres.folder} " in direct, direct
        return direct.replace(f"host={self.postgres.folder} ", f"host=127.0.0.1 port={self.door.port} ")

    def flags(self) -> list[str]:
        return [flag.replace(self.seaweed.endpoint, self.store.endpoint) for flag in self.seaweed.flags()]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.door.close()
        self.store.close()


def small_job(c: Context):
    digest = hashlib.sha256(c.local(harness.MODEL, "--mode=int4_sym", "--group-size=32")[1]).hexdigest()
    return c.xml, c.bin, {"mode": "int4_sym", "group_size": 32}, digest


def test_an_object_store_that_is_busy_and_cuts(c: Context):
    with Through(c) as through:
        c.postgres = c.seaweed = through

        def blow(chance):
            # Sometimes a burst in which every second request fails.
            worst = chance.random() < 0.2
            through.store.faults = {name: weight * (5 if worst else 1) for name, weight in
                                    (("slow", 0.04), ("reset", 0.02), ("lost", 0.02), ("half", 0.02), ("stall", 0.005))}
            return "burst" if worst else "some"

        def calm():
            through.store.faults = {}

        chaos(c, *small_job(c), blow=blow, calm=calm)
        print(f"     the store: {through.store.made}")
        assert set(through.store.made) >= {"slow", "reset", "lost"}, through.store.made


def test_a_database_that_stalls_and_is_cut_off(c: Context):
    with Through(c) as through:
        c.postgres = c.seaweed = through

        def blow(chance):
            what = chance.choice(["cut", "stall", "stall", "long stall"])
            if what == "cut":
                through.door.cut()
            else:
                through.door.shut.set()
                time.sleep(chance.uniform(0.2, 1.5) if what == "stall" else LEASE + 1)
                if chance.random() < 0.5:
                    through.door.cut()
                through.door.shut.clear()
            return what

        chaos(c, *small_job(c), blow=blow)
        assert through.door.cuts > 0


def test_a_cancel_and_a_stop_wait_for_no_store(c: Context):
    xml, data, digest = c.model()
    with Through(c) as through:
        c.postgres = c.seaweed = through
        with c.cluster(count=2) as replicas:
            client = replicas[0].client()
            model = client.upload_model(xml, data)
            # What the cache has is not asked for: the job stalls where it writes.
            job = slow_job(client, model)
            runner_of(c, replicas, job)
            through.store.silent.set()
            time.sleep(2)
            assert not get(client, job).done
            client.operations.CancelOperation(client.lro.CancelOperationRequest(name=job.name))
            begin = time.monotonic()
            assert client.wait(job).error.code == 1
            took = time.monotonic() - begin
            through.store.silent.clear()
            # One second until the server that runs it looks, one until the request ends.
            assert took < 2.5, took
            # Both stores are silent, and the server is to stop.
            job = slow_job(client, model)
            victim = runner_of(c, replicas, job)
            through.store.silent.set()
            through.door.shut.set()
            time.sleep(1)
            begin = time.monotonic()
            assert victim.stop() == 0
            stopped = time.monotonic() - begin
            through.store.silent.clear()
            through.door.shut.clear()
            print(f"     cancelled after {took:.1f} s, stopped after {stopped:.1f} s")
            # A connection that was being made may take its five seconds.
            assert stopped < 12, stopped
            other = next(r for r in replicas if r is not victim).client()
            assert other.result(other.wait(job, seconds=LEASE + 60)).model.bin.sha256 == digest


def test_servers_start_together_on_nothing(c: Context):
    for _ in range(3):
        with c.cluster(count=2) as replicas:
            one, two = (r.client() for r in replicas)
            model = one.upload_model(c.xml, c.bin)
            made = two.result(two.wait(two.submit(model, options={"mode": "int8_sym"})))
            assert one.read(made.model.bin) == two.read(made.model.bin) == c.local(harness.MODEL, "--mode=int8_sym")[1]


def service_tests(c: Context):
    """The system tests, each with servers on the shared stores."""

    def server(self, *flags):
        self._names += 1
        data = self.work / f"data{self._names}"
        return Replica(self.server_binary, data, f"--job-store={self.postgres.new_schema()}", *self.seaweed.flags(), f"--lease={LEASE}", *flags)

    spec = importlib.util.spec_from_file_location("system_tests", ROOT / "tests/integration/run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    Context.server = server
    return [(name, test) for name, test in vars(module).items() if name.startswith("test_")]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--chaos-seconds", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--service", action="store_true")
    parser.add_argument("--kills", type=int, default=3, help="SIGKILL trials in the system tests")
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    passed = failed = 0
    work = pathlib.Path(tempfile.mkdtemp(prefix="ovpress-cluster-"))
    # PostgreSQL's own user must reach its folder in it.
    work.chmod(0o755)
    postgres = seaweed = None
    try:
        (work / "stubs").mkdir()
        harness.generate_stubs(work / "stubs")
        postgres = Context.postgres = Postgres(work / "postgres")
        seaweed = Context.seaweed = Seaweed(work / "seaweed")
        Context.chaos_seconds, Context.seed = arguments.chaos_seconds, arguments.seed
        tests = [(name, test) for name, test in globals().items() if name.startswith("test_")]
        if arguments.service:
            tests += service_tests(Context)
        for name, test in tests:
            if arguments.names and name not in arguments.names:
                continue
            begin = time.monotonic()
            folder = pathlib.Path(tempfile.mkdtemp(dir=work))
            try:
                test(Context(arguments.build.resolve(), folder, arguments.kills))
                passed += 1
                print(f"ok   {name} ({time.monotonic() - begin:.1f} s)", flush=True)
            except Exception:
                failed += 1
                print(f"FAIL {name}\n{traceback.format_exc()}", flush=True)
                for log in folder.rglob("*.log"):
                    print(f"--- {log.parent.name}\n{log.read_text()[-1500:]}", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        if seaweed:
            seaweed.stop()
        if postgres:
            postgres.stop()
        shutil.rmtree(work, ignore_errors=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
