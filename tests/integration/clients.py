"""Clients as they come: many at once, slow ones, killed ones, cut connections,
cancellation, full stores, expiry, and the server's memory meanwhile."""

from __future__ import annotations

import hashlib
import random
import subprocess
import threading
import time

import grpc

from harness import CHUNK, MODEL, Context, details, expect, unbroken, wait_until

MIB = 1 << 20


def metric(server, name: str) -> float:
    for line in server.page("/metrics")[1].splitlines():
        if line.startswith(name + " "):
            return float(line.split()[1])
    raise AssertionError(f"no metric {name}")


def peak_bytes(server) -> int:
    with open(f"/proc/{server.process.pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def nothing_left(server) -> bool:
    """No call, memory, scratch file or unfinished output remains."""
    names = ("ovpress_transfers_active", "ovpress_jobs_running", "ovpress_memory_reserved_bytes")
    return all(metric(server, name) == 0 for name in names) and not list((server.data / "store/tmp").iterdir())


def cancel(client, name: str):
    client.operations.CancelOperation(client.lro.CancelOperationRequest(name=name))


def stream_requests(client, xml: bytes, data: bytes, options: dict, pause=None):
    pb = client.pb
    yield pb.CompressStreamRequest(open=pb.CompressStreamOpen(options=pb.CompressionOptions(**options), xml_size=len(xml), bin_size=len(data)))
    yield pb.CompressStreamRequest(xml_chunk=xml)
    for at in range(0, len(data), CHUNK):
        if pause is not None:
            pause(at)
        yield pb.CompressStreamRequest(bin_chunk=data[at : at + CHUNK])


def test_six_clients_at_once(c: Context):
    expected = {}
    choices = [("int8_asym", {}), ("int4_sym", {"group_size": 32}), ("nf4", {"group_size": 16})]
    for mode, more in choices:
        flags = [f"--mode={mode}"] + [f"--group-size={v}" for v in more.values()]
        expected[mode] = c.local(MODEL, *flags)
    failures = []
    with c.server() as server:

        def work(i: int):
            try:
                client = server.client()
                # Three and three have a model in common; the others' bytes differ by a tail.
                data = c.bin + bytes(i % 2)
                for mode, more in choices:
                    job = client.submit(client.upload_model(c.xml, data), options={"mode": mode, **more}, ignore_result_cache=i % 3 == 0)
                    seen = list(client.compression.WatchOperation(client.pb.WatchOperationRequest(name=job.name), timeout=120))
                    response = client.result(seen[-1])
                    assert (client.read(response.model.xml), client.read(response.model.bin)) == expected[mode], f"client {i}, {mode}"
            except Exception as error:
                failures.append(f"client {i}: {error!r}")

        threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=180)
        assert not failures and not any(thread.is_alive() for thread in threads), failures
        assert nothing_left(server)


def test_slow_readers_cost_neither_memory_nor_others(c: Context):
    path, xml, data = c.large_model_files()
    with c.server("--threads=2") as server:
        client = server.client()
        blob = client.upload(data)
        before = peak_bytes(server)
        # Three downloads and a stream that read a little and stop.
        name = f"blobs/{blob.sha256}/{blob.size_bytes}"
        reads = [server.client().bytes.Read(client.bs.ReadRequest(resource_name=name)) for _ in range(3)]
        heads = [next(read).data for read in reads]
        slow = server.client()
        stream = slow.compression.CompressStream(stream_requests(slow, xml, data, {"mode": "int8_sym"}))
        assert next(stream).HasField("plan")
        time.sleep(2)
        grown = peak_bytes(server) - before
        # 64 MiB for each transfer, and 64 MiB of the stream's budget for the engine's windows.
        assert grown < (4 * 64 + 64) * MIB, f"{grown / MIB:.0f} MiB"
        # The spools hold what flow control let through; nothing of it is on the disk.
        assert metric(server, "ovpress_transfers_active") == 4
        begin = time.monotonic()
        job = client.submit(client.upload_model(c.xml, c.bin), options={"mode": "int8_asym"})
        client.result(client.wait(job))
        assert time.monotonic() - begin < 10, "a slow reader holds up others"
        # They get everything in the end.
        for read, head in zip(reads, heads):
            digest = hashlib.sha256(head)
            for message in read:
                digest.update(message.data)
            assert digest.hexdigest() == blob.sha256
        out = b"".join(message.bin_chunk for message in stream)
        assert out == c.local(path, "--mode=int8_sym")[1]
        assert nothing_left(server)


def kill_when(process: subprocess.Popen, server, condition):
    """SIGKILL as soon as the condition holds while a transfer is under way."""
    wait_until(lambda: process.poll() is not None or condition(), 60)
    assert process.poll() is None, "it ended before it could be killed"
    process.kill()
    process.wait()
    wait_until(lambda: metric(server, "ovpress_transfers_active") == 0)


def test_clients_killed_in_mid_transfer(c: Context):
    path, xml, data = c.large_model_files()
    expected = c.local(path, "--mode=int8_sym")
    out = c.work / "killed.xml"
    with c.server() as server:
        base = [c.ovpress, "compress", path, "-o", out, "--mode=int8_sym", "--quiet", f"--server=127.0.0.1:{server.port}"]
        up, down = 'ovpress_transfer_bytes_total{direction="upload"}', 'ovpress_transfer_bytes_total{direction="download"}'
        moved = metric(server, up)
        kill_when(subprocess.Popen(base), server, lambda: metric(server, up) > moved + 20 * MIB)
        kill_when(subprocess.Popen([*base, "--stream"]), server, lambda: metric(server, down) > 5 * MIB)
        moved = metric(server, down)
        kill_when(subprocess.Popen(base), server, lambda: metric(server, down) > moved + 5 * MIB)
        assert not out.exists() and not out.with_suffix(".bin").exists()
        # The job that the last one left is finished; its result serves the next.
        subprocess.run(base, check=True)
        assert (out.read_bytes(), out.with_suffix(".bin").read_bytes()) == expected
        assert nothing_left(server)
        assert "ovpress_result_cache_hits_total 1" in server.page("/metrics")[1]


def test_connections_that_end_by_age(c: Context):
    path, xml, data = c.large_model_files()
    blob = data[: 40 * CHUNK]
    with c.server("--max-connection-age=0.5", "--max-connection-age-grace=0.5") as server:
        client = server.client()
        name = client.upload_name(blob)
        breaks = 0
        at = 0
        while at < len(blob):

            def messages(start=at):
                for i, offset in enumerate(range(start, len(blob), CHUNK)):
                    time.sleep(0.1)  # 4 s in all: longer than age and grace
                    part = blob[offset : offset + CHUNK]
                    yield client.bs.WriteRequest(resource_name=name if i == 0 else "", write_offset=offset, data=part, finish_write=offset + len(part) == len(blob))

            try:
                at = client.bytes.Write(messages(), timeout=60).committed_size
            except grpc.RpcError as error:
                assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED), error
                breaks += 1
                committed = client.bytes.QueryWriteStatus(client.bs.QueryWriteStatusRequest(resource_name=name), timeout=10, wait_for_ready=True).committed_size
                assert committed >= at, "what was durable is gone"
                at = committed
        assert breaks >= 2, breaks
        # Downloads go on where they were, watchers attach again: our client does both.
        out = c.work / "aged.xml"
        subprocess.run([c.ovpress, "compress", path, "-o", out, "--mode=int4_sym", "--group-size=64", "--quiet", f"--server=127.0.0.1:{server.port}"], check=True, timeout=120)
        assert (out.read_bytes(), out.with_suffix(".bin").read_bytes()) == c.local(path, "--mode=int4_sym", "--group-size=64")


def test_cancellation_in_every_phase(c: Context):
    path, xml, data = c.large_model_files()
    with c.server("--threads=1", "--max-running=1") as server:
        client = server.client()
        model = client.upload_model(xml, data)
        pb = client.pb
        ratio = {"mode": "int4_asym", "group_size": 64, "ratio": 0.6}
        seen = set()
        for phase in (pb.CompressModelMetadata.PHASE_SCORING, pb.CompressModelMetadata.PHASE_COMPRESSING, pb.CompressModelMetadata.PHASE_FINISHING):
            for attempt in range(20):  # a phase can be over before it is seen
                job = client.submit(model, options=ratio, ignore_result_cache=True)
                queued = client.submit(model, options=ratio, ignore_result_cache=True)
                while True:
                    state = client.metadata(client.operations.GetOperation(client.lro.GetOperationRequest(name=job.name)))
                    if state.phase == phase or state.state > pb.CompressModelMetadata.STATE_RUNNING:
                        break
                begin = time.monotonic()
                cancel(client, queued.name)
                cancel(client, job.name)
                assert client.wait(queued).error.code == 1
                ended = client.wait(job)
                assert time.monotonic() - begin < 1.5, "cancelling takes too long"
                if ended.error.code == 1 and state.phase == phase:
                    seen.add(phase)
                    break
                assert ended.error.code == 1 or ended.HasField("response"), ended
        assert len(seen) == 3, seen
        wait_until(lambda: nothing_left(server))
        # A stream: while it uploads, while it waits for its reader, at the end.
        for stop_at in (0, 8 * CHUNK, len(data) - CHUNK):
            reached = threading.Event()

            def pause(at, stop_at=stop_at, reached=reached):
                if at >= stop_at:
                    reached.set()

            call = client.compression.CompressStream(stream_requests(client, xml, data, {"mode": "int8_sym"}, pause))
            reader = threading.Thread(target=drain, args=(call,))
            reader.start()
            assert reached.wait(60)
            begin = time.monotonic()
            call.cancel()
            reader.join(timeout=10)
            wait_until(lambda: nothing_left(server), 5)
            assert time.monotonic() - begin < 3


def drain(call):
    try:
        for _ in call:
            pass
    except grpc.RpcError:
        pass


def test_full_store(c: Context):
    path, xml, data = c.large_model_files()
    with c.server("--max-store-bytes=320MiB", "--min-blob-age=60") as server:
        client = server.client()
        model = client.upload_model(xml, data)  # 256 MiB
        # The result does not fit beside it: known before a byte is computed.
        error = expect(grpc.StatusCode.RESOURCE_EXHAUSTED, lambda: client.submit(model, options={"mode": "int8_sym"}, ignore_result_cache=True), "max_store_bytes")
        assert details(error, "QuotaFailure").violations and details(error, "RetryInfo").retry_delay.seconds > 0
        job = client.submit(model, options={"mode": "int4_sym", "group_size": 64}, ignore_result_cache=True)
        assert client.result(client.wait(job)).bin_bytes_after < 64 * MIB
        # Neither does another upload; not one byte of it is taken.
        other = data[:-1]
        moved = metric(server, 'ovpress_transfer_bytes_total{direction="upload"}')
        expect(grpc.StatusCode.RESOURCE_EXHAUSTED, lambda: client.write(client.upload_name(other), other), "max_store_bytes")
        assert metric(server, 'ovpress_transfer_bytes_total{direction="upload"}') == moved
        # A stream that has to keep its weights says so before they are sent; one that need not, works.
        expect(grpc.StatusCode.RESOURCE_EXHAUSTED, lambda: list(client.compression.CompressStream(stream_requests(client, xml, data, {"mode": "int4_asym", "group_size": 64, "ratio": 0.6}))), "max_store_bytes")
        out = unbroken(lambda: b"".join(m.bin_chunk for m in client.compression.CompressStream(stream_requests(client, xml, data, {"mode": "int8_sym"}))))
        assert out == c.local(path, "--mode=int8_sym")[1]
        wait_until(lambda: nothing_left(server))


def test_expiry(c: Context):
    with c.server("--upload-ttl=1", "--default-result-ttl=1.5", "--max-result-ttl=5", "--sweep-interval=0.2", "--min-blob-age=0.1") as server:
        client = server.client()
        data = random.Random(3).randbytes(3 * CHUNK)
        name = client.upload_name(data)
        client.write(name, data[:CHUNK], finish=False)
        query = lambda: client.bytes.QueryWriteStatus(client.bs.QueryWriteStatusRequest(resource_name=name))  # noqa: E731
        assert query().committed_size == CHUNK
        job = client.submit(client.upload_model(c.xml, c.bin))
        result = client.result(client.wait(job))
        lasting = client.wait(client.submit(client.upload_model(c.xml, c.bin), options={"mode": "int8_sym"}, ttl={"seconds": 5}))
        assert client.read(result.model.bin)

        def gone(call):
            try:
                call()
                return False
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.NOT_FOUND, error
                return True

        wait_until(lambda: gone(query))
        assert metric(server, "ovpress_uploads_expired_total") == 1
        wait_until(lambda: gone(lambda: client.operations.GetOperation(client.lro.GetOperationRequest(name=job.name))))
        # The bytes stay until room is needed, but no job holds them any more.
        # What was asked to stay longer is still there, and the forgotten upload starts anew.
        assert client.read(client.result(lasting).model.bin)
        assert client.write(name, data).committed_size == len(data)


def test_peak_memory(c: Context):
    path, xml, data = c.large_model_files()
    with c.server("--default-job-memory-bytes=64MiB") as server:
        client = server.client()
        out = unbroken(lambda: b"".join(m.bin_chunk for m in client.compression.CompressStream(stream_requests(client, xml, data, {"mode": "int8_sym"}))))
        assert hashlib.sha256(out).digest() == hashlib.sha256(c.local(path, "--mode=int8_sym")[1]).digest()
        subprocess.run([c.ovpress, "compress", path, "-o", c.work / "out.xml", "--mode=int4_asym", "--group-size=64", "--ratio=0.6", "--memory-budget=64MiB", "--quiet", f"--server=127.0.0.1:{server.port}"], check=True)
        peak = peak_bytes(server)
        # The budget of the one run, and 64 MiB for the one transfer at a time. (Sanitizers, for which there is
        # patience, keep what was freed.)
        assert c.patience > 1 or peak < (64 + 64) * MIB, f"{peak / MIB:.0f} MiB"
