#!/usr/bin/env python3
"""System tests: the real server over a real socket, called by a client that
shares no code with ours (Python's grpcio with generated stubs).

  tests/integration/run.py --build build/ci [--kills 20] [NAME...]

The last line is "N passed, N failed"."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import uuid

import grpc

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import clients
from harness import CHUNK, MODEL, Context, details, expect, generate_stubs, unbroken, wait_until, wide_model

def test_job_equals_local_run(c: Context):
    with c.server() as server:
        client = server.client()
        missing = client.compression.FindMissingBlobs(client.pb.FindMissingBlobsRequest(blobs=[client.blob(c.xml), client.blob(c.bin)]))
        assert len(missing.missing_blobs) == 2
        model = client.upload_model(c.xml, c.bin)
        for options, flags in (
            ({"mode": "int8_asym"}, []),
            ({"mode": "int4_sym", "group_size": 32, "ratio": 0.5}, ["--mode=int4_sym", "--group-size=32", "--ratio=0.5"]),
            ({"mode": "nf4", "group_size": 16, "awq": True}, ["--mode=nf4", "--group-size=16", "--awq"]),
        ):
            operation = client.submit(model, options=options)
            seen = list(client.compression.WatchOperation(client.pb.WatchOperationRequest(name=operation.name), timeout=60))
            assert seen[-1].done and all(not o.done for o in seen[:-1])
            response = client.result(seen[-1])
            local_xml, local_bin = c.local(MODEL, *flags)
            assert client.read(response.model.bin) == local_bin
            assert client.read(response.model.xml) == local_xml
            assert b'"weights"' in client.read(response.report)


def test_compress_stream_equals_local_run(c: Context):
    path, xml, data = c.large_model_files()
    with c.server() as server:
        client = server.client()
        for options, flags in (({"mode": "int8_sym"}, ["--mode=int8_sym"]), ({"mode": "int4_asym", "group_size": 64, "ratio": 0.6}, ["--mode=int4_asym", "--group-size=64", "--ratio=0.6"])):
            def requests(sha=hashlib.sha256(data).hexdigest(), options=options):
                pb = client.pb
                yield pb.CompressStreamRequest(open=pb.CompressStreamOpen(options=pb.CompressionOptions(**options), xml_size=len(xml), bin_size=len(data), bin_sha256=sha))
                yield pb.CompressStreamRequest(xml_chunk=xml)
                for at in range(0, len(data), CHUNK):
                    yield pb.CompressStreamRequest(bin_chunk=data[at : at + CHUNK])

            out_xml, out_bin, result = b"", [], None
            for message in unbroken(lambda requests=requests: list(client.compression.CompressStream(requests(), timeout=120))):
                out_xml += message.xml_chunk
                out_bin.append(message.bin_chunk)
                if message.HasField("result"):
                    result = message.result
            local_xml, local_bin = c.local(path, *flags)
            assert b"".join(out_bin) == local_bin and out_xml == local_xml
            assert result.model.bin == client.blob(local_bin)
        expect(grpc.StatusCode.INVALID_ARGUMENT, lambda: list(client.compression.CompressStream(requests(sha="0" * 64), timeout=120)), "SHA-256")


def test_stream_of_the_command_line(c: Context):
    path, xml, data = c.large_model_files()
    # A model whose scales run across a weight larger than the spool.
    tall = c.work / "tall.xml"
    tall.write_text(wide_model(rows=8192, columns=2048))
    tall.with_suffix(".bin").write_bytes(data[: 8192 * 2048 * 4])
    with c.server() as server:
        for model, flags in ((path, ["--mode=int4_sym", "--group-size=64"]), (path, ["--mode=int4_asym", "--group-size=64", "--ratio=0.6"]), (tall, ["--mode=int8_sym"]), (MODEL, ["--mode=nf4", "--group-size=16", "--awq"])):
            out = c.work / "streamed.xml"
            done = subprocess.run([c.ovpress, "compress", model, "-o", out, "--stream", f"--server=127.0.0.1:{server.port}", "--report", c.work / "report.json", *flags], capture_output=True, text=True)
            assert done.returncode == 0 and "weights file" in done.stdout, done
            assert (out.read_bytes(), out.with_suffix(".bin").read_bytes()) == c.local(model, *flags)
            assert json.loads((c.work / "report.json").read_text())["weights"]
        assert not list((server.data / "store/tmp").iterdir()) and "ovpress_transfers_active 0" in server.page("/metrics")[1]
        # An interrupt ends the call on both sides and leaves no file.
        out = c.work / "interrupted.xml"
        process = subprocess.Popen([c.ovpress, "compress", tall, "-o", out, "--stream", f"--server=127.0.0.1:{server.port}", "--mode=int8_sym", "--retry-seconds=60"], stderr=subprocess.PIPE, text=True)
        wait_until(lambda: "ovpress_transfers_active 1" in server.page("/metrics")[1] or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130, process.stderr.read()
        wait_until(lambda: "ovpress_transfers_active 0" in server.page("/metrics")[1])
        assert not list(c.work.glob("interrupted*"))
        # A server that goes away and comes back: from the start again.
        process = subprocess.Popen([c.ovpress, "compress", path, "-o", out, "--stream", f"--server=127.0.0.1:{server.port}", "--mode=int8_sym", "--quiet"])
        wait_until(lambda: "ovpress_transfers_active 1" in server.page("/metrics")[1] or process.poll() is not None)
        server.kill()
        server.listen = f"127.0.0.1:{server.port}"
        server.start()
        assert process.wait(timeout=60) == 0
        assert (out.read_bytes(), out.with_suffix(".bin").read_bytes()) == c.local(path, "--mode=int8_sym")


def test_upload_resumes(c: Context):
    data = random.Random(1).randbytes(5 * CHUNK + 17)
    with c.server() as server:
        client = server.client()
        name = client.upload_name(data)
        expect(grpc.StatusCode.NOT_FOUND, lambda: client.bytes.QueryWriteStatus(client.bs.QueryWriteStatusRequest(resource_name=name)))
        assert client.write(name, data[: 2 * CHUNK], finish=False).committed_size == 2 * CHUNK
        expect(grpc.StatusCode.OUT_OF_RANGE, lambda: client.write(name, data, start=CHUNK), "write_offset")
        client.write(name, data[: 3 * CHUNK], start=2 * CHUNK, finish=False)
        server.kill()
        server.start()
        client = server.client()
        status = client.bytes.QueryWriteStatus(client.bs.QueryWriteStatusRequest(resource_name=name))
        assert status.committed_size == 3 * CHUNK and not status.complete, status
        assert client.write(name, data, start=status.committed_size).committed_size == len(data)
        assert client.bytes.QueryWriteStatus(client.bs.QueryWriteStatusRequest(resource_name=name)).complete
        assert client.read(client.blob(data)) == data
        assert client.read(client.blob(data), offset=len(data) - 5) == data[-5:]
        assert client.read(client.blob(data), offset=3, limit=4) == data[3:7]
        expect(grpc.StatusCode.OUT_OF_RANGE, lambda: client.read(client.blob(data), offset=len(data) + 1))
        assert "ovpress_uploads_resumed_total" in server.page("/metrics")[1]


def test_upload_edges(c: Context):
    data = b"some bytes" * 100
    with c.server("--max-blob-bytes=10MB") as server:
        client = server.client()
        bad_digest = f"uploads/{uuid.uuid4()}/blobs/{'a' * 64}/{len(data)}"
        expect(grpc.StatusCode.INVALID_ARGUMENT, lambda: client.write(bad_digest, data), "SHA-256")
        for name in ("", "blobs/x/1", f"uploads/../blobs/{'a' * 64}/3", f"uploads/u/blobs/{'A' * 64}/3", f"uploads/u/blobs/{'a' * 64}/03", f"uploads/u/blobs/{'a' * 64}/-1", "x" * 5000):
            expect(grpc.StatusCode.INVALID_ARGUMENT, lambda name=name: client.write(name, b"abc"))
        expect(grpc.StatusCode.INVALID_ARGUMENT, lambda: client.write(client.upload_name(data)[: -len(str(len(data)))] + "5", data), "beyond the size")
        expect(grpc.StatusCode.INVALID_ARGUMENT, lambda: client.write(f"uploads/u/blobs/{'a' * 64}/99999999999", b""), "max_blob_bytes")
        taken = client.upload_name(data, "same-uuid")
        client.write(taken, data[:10], finish=False)
        other = client.upload_name(b"other", "same-uuid")
        expect(grpc.StatusCode.ALREADY_EXISTS, lambda: client.write(other, b"other"))
        client.write(taken, data, start=10)
        assert client.write(client.upload_name(data), b"", finish=False).committed_size == len(data)  # early OK
        assert client.write(client.upload_name(b""), b"").committed_size == 0
        assert client.read(client.blob(b"")) == b""
        short = client.upload_name(data + b"!")
        expect(grpc.StatusCode.INVALID_ARGUMENT, lambda: client.write(short, data), "finish_write")
        assert client.write(short, data + b"!", start=len(data)).committed_size == len(data) + 1
        # Zero-byte chunks in the middle are fine.
        text = b"abcdef"
        name = client.upload_name(text)
        parts = [(0, b"abc", False), (3, b"", False), (3, b"def", True)]
        assert client.bytes.Write(iter([client.bs.WriteRequest(resource_name=name, write_offset=o, data=d, finish_write=f) for o, d, f in parts])).committed_size == 6
        expect(grpc.StatusCode.NOT_FOUND, lambda: client.read(client.blob(b"unknown")))


def test_submit_errors_and_idempotence(c: Context):
    with c.server() as server:
        client = server.client()
        absent = client.pb.ModelBlobs(xml=client.blob(c.xml), bin=client.blob(c.bin))
        error = expect(grpc.StatusCode.FAILED_PRECONDITION, lambda: client.submit(absent))
        violations = details(error, "PreconditionFailure").violations
        assert [v.type for v in violations] == ["MISSING"] * 2 and violations[0].subject.startswith("blobs/")
        assert details(error, "ErrorInfo").reason == "BLOBS_MISSING"
        model = client.upload_model(c.xml, c.bin)
        expect(grpc.StatusCode.INVALID_ARGUMENT, lambda: client.submit(model, options={"mode": "int5"}), "one of: ")
        expect(grpc.StatusCode.INVALID_ARGUMENT, lambda: client.submit(model, options={"mode": "int8_asym", "group_size": 64}))
        expect(grpc.StatusCode.INVALID_ARGUMENT, lambda: client.submit(model, priority=1000), "priority")
        dry = client.submit(model, validate_only=True)
        assert dry.name == "" and not dry.done
        first = client.submit(model, request_id="one", labels={"team": "a"})
        again = client.submit(model, request_id="one", labels={"team": "a"})
        assert first.name == again.name
        expect(grpc.StatusCode.ALREADY_EXISTS, lambda: client.submit(model, request_id="one", priority=3))
        client.wait(first)
        hit = client.submit(model)
        assert hit.done and client.result(hit).cache_hit and hit.name != first.name
        fresh = client.submit(model, ignore_result_cache=True)
        assert not client.result(client.wait(fresh)).cache_hit
        listed = client.operations.ListOperations(client.lro.ListOperationsRequest(filter="state=SUCCEEDED AND labels.team=a"))
        assert [o.name for o in listed.operations] == [first.name]
        page = client.operations.ListOperations(client.lro.ListOperationsRequest(page_size=2))
        rest = client.operations.ListOperations(client.lro.ListOperationsRequest(page_size=2, page_token=page.next_page_token))
        assert len(page.operations) == 2 and len(rest.operations) == 1 and not rest.next_page_token
        expect(grpc.StatusCode.INVALID_ARGUMENT, lambda: client.operations.ListOperations(client.lro.ListOperationsRequest(filter="x=1")))
        client.operations.DeleteOperation(client.lro.DeleteOperationRequest(name=first.name))
        expect(grpc.StatusCode.NOT_FOUND, lambda: client.operations.GetOperation(client.lro.GetOperationRequest(name=first.name)))
        broken = client.upload_model(c.xml[: len(c.xml) // 2], c.bin)
        expect(grpc.StatusCode.DATA_LOSS, lambda: client.submit(broken))
        estimate = client.compression.EstimateCompression(client.pb.EstimateCompressionRequest(xml=c.xml, options=client.pb.CompressionOptions(mode="int4_sym", group_size=32)))
        assert estimate.weight_count > 5 and estimate.output_bin_bytes_min == estimate.output_bin_bytes_max < len(c.bin)
        assert any(m.name == "nvfp4" for m in client.compression.GetCapabilities(client.pb.GetCapabilitiesRequest()).modes)


def test_cancel_and_queue_limits(c: Context):
    xml, data = c.large_model()
    with c.server("--max-running=1", "--max-queued=2", "--threads=1") as server:
        client = server.client()
        model = client.upload_model(xml, data)
        jobs = [client.submit(model, ignore_result_cache=True, options={"mode": "nf4", "group_size": 64})]
        while client.metadata(client.operations.GetOperation(client.lro.GetOperationRequest(name=jobs[0].name))).state != client.pb.CompressModelMetadata.STATE_RUNNING:
            time.sleep(0.01)
        jobs += [client.submit(model, ignore_result_cache=True, options={"mode": "nf4", "group_size": 64}) for _ in range(2)]
        error = expect(grpc.StatusCode.RESOURCE_EXHAUSTED, lambda: client.submit(model, ignore_result_cache=True, options={"mode": "nf4"}), "max_queued")
        assert details(error, "RetryInfo").retry_delay.seconds > 0 and details(error, "QuotaFailure").violations
        for job in reversed(jobs):
            begin = time.monotonic()
            client.operations.CancelOperation(client.lro.CancelOperationRequest(name=job.name))
            ended = client.wait(job)
            assert ended.error.code == 1, ended
            assert time.monotonic() - begin < 2
        assert 'ovpress_jobs_total{mode="nf4",outcome="cancelled"} 3' in server.page("/metrics")[1].replace('outcome="cancelled",mode="nf4"', 'mode="nf4",outcome="cancelled"')


def test_restart_with_a_running_job(c: Context):
    path, xml, data = c.large_model_files()
    expected = hashlib.sha256(c.local(path, "--mode=int4_sym", "--group-size=64")[1]).hexdigest()
    with c.server("--threads=1") as server:
        client = server.client()
        model = client.upload_model(xml, data)
        for trial in range(c.kills):
            job = client.submit(model, ignore_result_cache=True, options={"mode": "int4_sym", "group_size": 64})
            time.sleep(random.Random(trial).uniform(0, 0.6))
            server.kill()
            server.start()
            client = server.client()
            assert client.result(client.wait(job)).model.bin.sha256 == expected
        # A drain hands the job back; it ends after the next start.
        job = client.submit(model, ignore_result_cache=True, options={"mode": "int4_sym", "group_size": 64})
        server.flags = (*server.flags, "--drain-seconds=0")
        assert server.stop() == 0
        server.start()
        client = server.client()
        assert client.result(client.wait(job)).model.bin.sha256 == expected


def test_kill_during_uploads(c: Context):
    data = random.Random(2).randbytes(32 * CHUNK)
    with c.server() as server:
        client = server.client()
        for trial in range(c.kills):
            blob = data[trial:]
            name = client.upload_name(blob)
            killer = threading.Timer(random.Random(trial).uniform(0.0, 0.15), server.kill)
            killer.start()
            acknowledged = False
            try:
                acknowledged = client.write(name, blob).committed_size == len(blob)
            except grpc.RpcError:
                pass
            killer.join()
            server.start()
            client = server.client()
            if acknowledged:
                assert client.read(client.blob(blob)) == blob
                continue
            try:
                status = client.bytes.QueryWriteStatus(client.bs.QueryWriteStatusRequest(resource_name=name))
                at, complete = status.committed_size, status.complete
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.NOT_FOUND
                at, complete = 0, False
            # All bytes may have come without the finish_write that makes them a blob.
            if not complete:
                client.write(name, blob, start=at)
            assert hashlib.sha256(client.read(client.blob(blob))).digest() == hashlib.sha256(blob).digest()


def test_stalled_transfers_delay_no_health_check(c: Context):
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    # Long enough for all health calls below, were each as slow as is allowed.
    with c.server(f"--idle-timeout={6 * c.patience}") as server:
        client = server.client()
        blob = client.upload(bytes(64 * CHUNK))
        release = threading.Event()
        ends = []

        def stalled_upload(i):
            stalled = server.client()
            data = bytes([i]) * (4 * CHUNK)

            def messages():
                yield stalled.bs.WriteRequest(resource_name=stalled.upload_name(data), data=data[:CHUNK])
                release.wait(60 * c.patience)

            stalled.bytes.Write(messages(), timeout=120 * c.patience)

        def stalled_download(_):
            stalled = server.client()
            read = stalled.bytes.Read(stalled.bs.ReadRequest(resource_name=f"blobs/{blob.sha256}/{blob.size_bytes}"), timeout=120 * c.patience)
            next(read)
            release.wait(60 * c.patience)
            for _ in read:
                pass

        def stall(kind, i):
            try:
                kind(i)
            except grpc.RpcError as error:
                ends.append(error.code())

        threads = [threading.Thread(target=stall, args=(stalled_download if i < 3 else stalled_upload, i)) for i in range(8)]
        for thread in threads:
            thread.start()
        # They have sent and taken what flow control allows once nothing moves any more.
        moved = ""

        def standstill():
            nonlocal moved
            before, moved = moved, [line for line in server.page("/metrics")[1].splitlines() if line.startswith(("ovpress_transfer_bytes_total", "ovpress_transfers_active"))]
            time.sleep(0.3)
            return "ovpress_transfers_active 8" in moved and before == moved

        wait_until(standstill)
        error = expect(grpc.StatusCode.RESOURCE_EXHAUSTED, lambda: client.write(client.upload_name(b"more"), b"more"), "max_transfers_per_owner")
        assert details(error, "RetryInfo")
        health = health_pb2_grpc.HealthStub(client.channel)
        for service in ("", "ovpress.v1.WeightCompression"):
            assert health.Check(health_pb2.HealthCheckRequest(service=service)).status == health_pb2.HealthCheckResponse.SERVING
        seconds = []
        for _ in range(61):
            begin = time.monotonic()
            health.Check(health_pb2.HealthCheckRequest())
            seconds.append(time.monotonic() - begin)
        # All of it while every transfer stalled: a call that waited for their end would show here.
        assert "ovpress_transfers_active 8" in server.page("/metrics")[1] and not ends, ends
        # The median, for other programs may hold the processor through a call or two.
        median = sorted(seconds)[len(seconds) // 2]
        assert median < 0.05 * c.patience, f"median {median * 1000:.1f} ms, slowest {max(seconds) * 1000:.1f} ms"
        wait_until(lambda: "ovpress_transfers_active 0" in server.page("/metrics")[1], 20 * c.patience)
        release.set()
        for thread in threads:
            thread.join()
        assert ends == [grpc.StatusCode.DEADLINE_EXCEEDED] * 8, ends
        assert client.upload(b"works again")


def test_pages_and_drain(c: Context):
    with c.server() as server:
        assert server.page("/healthz") == (200, "ok\n") and server.page("/readyz") == (200, "ready\n")
        assert server.page("/nothing")[0] == 404
        client = server.client()
        client.upload(b"x")
        text = server.page("/metrics")[1]
        promtool = shutil.which("promtool")
        if promtool:
            checked = subprocess.run([promtool, "check", "metrics"], input=text, text=True, capture_output=True)
            assert checked.returncode == 0, checked.stdout + checked.stderr
        for name in ("ovpress_build_info", "ovpress_jobs_queued", "ovpress_store_bytes", "ovpress_rpc_handled_total", "process_resident_memory_bytes"):
            assert name in text, name
        assert server.stop() == 0
        second = subprocess.run([c.server_binary, "--listen=nowhere", "--insecure-listen", f"--data-dir={c.work / 'other'}"], capture_output=True, text=True)
        assert second.returncode == 1 and "cannot listen" in second.stderr.splitlines()[-1]


def slow_relay(port: int, delay: float) -> int:
    """A port that leads to the server, whose bytes come `delay` seconds late at
    first: a link across the world, or a machine that is busy."""
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, target: socket.socket, wait: float):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                time.sleep(wait)
                wait = 0
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def serve():
        while True:
            near, _ = listener.accept()
            far = socket.create_connection(("127.0.0.1", port))
            threading.Thread(target=pump, args=(near, far, 0), daemon=True).start()
            threading.Thread(target=pump, args=(far, near, delay), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return listener.getsockname()[1]


def test_a_slow_handshake_is_waited_for(c: Context):
    with c.server() as server:
        address = f"127.0.0.1:{slow_relay(int(server.port), 0.7)}"
        for command in (["health"], ["compress", MODEL, "-o", c.work / "slow.xml", "--quiet"]):
            answer = subprocess.run([c.ovpress, *command, "--server", address, "--retry-seconds", "0"], capture_output=True, text=True, timeout=60)
            assert answer.returncode == 0, f"{command[0]}: {answer.stderr}"


def test_json_log_has_the_job_on_its_lines(c: Context):
    with c.server("--log-format=json", "--threads=1") as server:
        client = server.client()
        # Not one weight is a number: a job that fails while it runs, with a name in its message.
        bad = client.submit(client.upload_model(c.xml, b"\xff" * len(c.bin)))
        assert client.wait(bad).error.code, "a model of NaNs passes"
        good = client.submit(client.upload_model(c.xml, c.bin))
        client.result(client.wait(good))
        assert server.stop() == 0
        lines = [json.loads(line) for line in server.data.with_suffix(".log").read_text().splitlines()]
        assert all({"time", "level", "message"} <= line.keys() for line in lines)
        for job in (bad, good):
            assert any(line.get("job") == job.name.removeprefix("operations/") for line in lines), lines


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--kills", type=int, default=20, help="SIGKILL trials of each kind")
    parser.add_argument("--patience", type=float, default=1, help="times as long as a build without sanitizers may take")
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    passed = failed = 0
    with tempfile.TemporaryDirectory(prefix="ovpress-system-") as folder:
        work = pathlib.Path(folder)
        (work / "stubs").mkdir()
        generate_stubs(work / "stubs")
        for name, test in [*globals().items(), *vars(clients).items()]:
            if not name.startswith("test_") or (arguments.names and name not in arguments.names):
                continue
            begin = time.monotonic()
            try:
                test(Context(arguments.build.resolve(), pathlib.Path(tempfile.mkdtemp(dir=work)), arguments.kills, arguments.patience))
                passed += 1
                print(f"ok   {name} ({time.monotonic() - begin:.1f} s)", flush=True)
            except Exception:
                failed += 1
                print(f"FAIL {name}\n{traceback.format_exc()}", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
