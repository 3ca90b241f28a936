#!/usr/bin/env python3
"""The tests themselves; run.py starts this in each environment. A test belongs
to the group that its decorator names. The last line is "N passed, N failed"."""

from __future__ import annotations

import argparse
import array
import ast
import asyncio
import contextlib
import enum
import hashlib
import importlib
import importlib.metadata
import inspect
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
import urllib.request
import zipfile
from concurrent import futures

import grpc

import ovpress_client
from ovpress_client import AsyncClient, Client, errors, options
from ovpress_client import _messages as pb

HERE = pathlib.Path(__file__).resolve().parent
PACKAGE = HERE.parent
REPOSITORY = HERE.parents[2]
MODEL = REPOSITORY / "tests/data/models/llama/openvino_model.xml"
TESTS = []


def test(group="plain"):
    def add(function):
        TESTS.append((group, function))
        return function

    return add


# --- helpers ---


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """The real server, on one port and one data folder over its restarts."""

    def __init__(self, binary: pathlib.Path, data: pathlib.Path, *flags: str):
        self.binary, self.data, self.flags = binary, data, flags
        self.port, self.http_port = free_port(), free_port()
        self.process = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> Server:
        port_file = self.data.with_suffix(".port")
        port_file.unlink(missing_ok=True)
        command = [self.binary, f"--listen=127.0.0.1:{self.port}", f"--metrics=127.0.0.1:{self.http_port}", f"--data-dir={self.data}", f"--port-file={port_file}", "--min-free-bytes=1MB", *self.flags]
        with open(self.data.with_suffix(".log"), "ab") as log:
            self.process = subprocess.Popen([str(part) for part in command], stderr=log)
        for _ in range(1000):
            if port_file.exists() and port_file.read_text().strip():
                return self
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended: {self.data.with_suffix('.log').read_text()[-500:]}")
            time.sleep(0.01)
        raise RuntimeError("the server does not start")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def restart_after_kill(self) -> None:
        self.kill()
        self.start()

    def metric(self, name: str, label: str = "") -> float:
        """The sum of a metric over its labels, or over those that hold `label`."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return sum(float(line.split()[-1]) for line in text.splitlines() if re.match(rf"{name}[ {{]", line) and label in line)

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()


class Proxy:
    """Passes TCP on. Cuts each connection after `limit` bytes, `cuts` times; with
    `tls` it speaks TLS to the client. The server's first bytes come `delay`
    seconds late."""

    def __init__(self, target_port: int, limit: int = 0, cuts: int = 0, tls: ssl.SSLContext | None = None, delay: float = 0):
        self.target_port, self.limit, self.cuts, self.tls, self.delay = target_port, limit, cuts, tls, delay
        self.cut = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                if self.tls:
                    near = self.tls.wrap_socket(near, server_side=True)
                far = socket.create_connection(("127.0.0.1", self.target_port))
                passed = [0]
                for a, b, delay in ((near, far, 0), (far, near, self.delay)):
                    threading.Thread(target=self._pump, args=(a, b, passed, delay), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, passed: list, delay: float) -> None:
        with contextlib.suppress(OSError):
            while True:
                data = source.recv(65536)
                if not data:
                    break
                time.sleep(delay)
                delay = 0
                passed[0] += len(data)
                if passed[0] > self.limit and self.cut < self.cuts:
                    self.cut += 1
                    break
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()


class FakeServer(grpc.GenericRpcHandler):
    """Answers by functions (request, context) -> response; what the real server
    would do only when it is broken, full or guarded."""

    TYPES = {
        "/google.bytestream.ByteStream/Read": ("unary_stream", pb.ReadRequest),
        "/google.bytestream.ByteStream/Write": ("stream_unary", pb.WriteRequest),
        "/google.longrunning.Operations/CancelOperation": ("unary_unary", pb.CancelOperationRequest),
        "/google.longrunning.Operations/GetOperation": ("unary_unary", pb.GetOperationRequest),
        "/ovpress.v1.WeightCompression/CompressModel": ("unary_unary", pb.CompressModelRequest),
        "/ovpress.v1.WeightCompression/GetCapabilities": ("unary_unary", pb.GetCapabilitiesRequest),
        "/ovpress.v1.WeightCompression/FindMissingBlobs": ("unary_unary", pb.FindMissingBlobsRequest),
    }

    def __init__(self, functions: dict, credentials=None):
        self.functions = functions
        self.metadata = []
        self.server = grpc.server(futures.ThreadPoolExecutor(8))
        self.server.add_generic_rpc_handlers((self,))
        if credentials:
            self.port = self.server.add_secure_port("localhost:0", credentials)
        else:
            self.port = self.server.add_insecure_port("127.0.0.1:0")

    def service(self, details):
        name = details.method.rpartition("/")[2]
        if name not in self.functions:
            return None
        self.metadata.append(dict(details.invocation_metadata))
        kind, request = self.TYPES[details.method]
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(self.functions[name], request_deserializer=request.FromString, response_serializer=lambda m: m.SerializeToString())

    def __enter__(self) -> FakeServer:
        self.server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stop(None)


def abort(context, code: errors.Code, message: str, *details) -> None:
    status = pb.Status(code=int(code), message=message)
    for detail in details:
        status.details.add()
        status.details[-1].type_url = f"type.googleapis.com/{detail.DESCRIPTOR.full_name}"
        status.details[-1].value = detail.SerializeToString()
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(next(c for c in grpc.StatusCode if c.value[0] == int(code)), message)


class Context:
    def __init__(self, arguments, work: pathlib.Path):
        self.work, self.ovpress, self.wheel = work, arguments.ovpress, arguments.wheel
        self.server_binary = arguments.server_binary
        self._servers = 0

    def server(self, *flags: str) -> Server:
        self._servers += 1
        return Server(self.server_binary, self.work / f"data{self._servers}", *flags)

    def local(self, model: pathlib.Path, *flags: str) -> tuple[bytes, bytes]:
        out = self.work / "local.xml"
        subprocess.run([self.ovpress, "compress", model, "-o", out, "--quiet", *flags], check=True)
        return out.read_bytes(), out.with_suffix(".bin").read_bytes()

    def large_model(self, count: int = 24, stored: int = 0) -> pathlib.Path:
        """A chain of MatMuls with 4 MiB of f32 weights each. With `stored` the
        file has room for so many of them only: they overlap."""
        rows, layers, edges, last = 1024, [], [], 0
        stored = stored or count
        step = (stored - 1) * rows * rows * 4 // (count - 1) & ~63 if stored < count else rows * rows * 4
        port = f"<dim>1</dim><dim>{rows}</dim></port>"
        layers.append(f'<layer id="0" name="x" type="Parameter" version="opset1"><data shape="1,{rows}" element_type="f32"/><output><port id="0" precision="FP32" names="x">{port}</output></layer>')
        for i in range(count):
            weight, matmul = 2 * i + 1, 2 * i + 2
            layers.append(f'<layer id="{weight}" name="w{i}" type="Const" version="opset1"><data element_type="f32" shape="{rows}, {rows}" offset="{i * step}" size="{rows * rows * 4}"/><output><port id="0" precision="FP32"><dim>{rows}</dim><dim>{rows}</dim></port></output></layer>')
            layers.append(f'<layer id="{matmul}" name="m{i}" type="MatMul" version="opset1"><data transpose_a="false" transpose_b="true"/><input><port id="0" precision="FP32">{port}<port id="1" precision="FP32"><dim>{rows}</dim><dim>{rows}</dim></port></input><output><port id="2" precision="FP32">{port}</output></layer>')
            edges.append(f'<edge from-layer="{last}" from-port="{0 if last == 0 else 2}" to-layer="{matmul}" to-port="0"/><edge from-layer="{weight}" from-port="0" to-layer="{matmul}" to-port="1"/>')
            last = matmul
        layers.append(f'<layer id="{2 * count + 1}" name="r" type="Result" version="opset1"><input><port id="0" precision="FP32">{port}</input></layer>')
        edges.append(f'<edge from-layer="{last}" from-port="2" to-layer="{2 * count + 1}" to-port="0"/>')
        path = self.work / "large.xml"
        path.write_text(f'<?xml version="1.0"?>\n<net name="chain" version="11"><layers>{"".join(layers)}</layers><edges>{"".join(edges)}</edges><rt_info/></net>\n')
        generator = random.Random(7)
        block = array.array("f", (generator.uniform(-1, 1) for _ in range(1 << 16))).tobytes()
        with open(path.with_suffix(".bin"), "wb") as file:
            for i in range(stored * rows * rows * 4 // len(block)):
                file.write(block[4 * i :] + block[: 4 * i])
        return path


def expect(kind, call, text: str = ""):
    try:
        call()
    except kind as error:
        assert text in str(error), error
        return error
    raise AssertionError(f"no error; expected {kind.__name__}")


def wait_until(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def files_in(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


# With 256 entries the search in the codebook takes a second for 24 matrices;
# other modes are done before a watcher sees them run.
SLOW_CODEBOOK = [(i - 127) / 100 for i in range(256)]
SLOW = {"mode": "codebook", "codebook": SLOW_CODEBOOK, "group_size": 64, "ignore_result_cache": True}


def slow_result(c: Context, model: pathlib.Path) -> tuple[bytes, bytes]:
    (c.work / "slow.json").write_text(json.dumps(SLOW_CODEBOOK))
    return c.local(model, "--mode=codebook", f"--codebook={c.work / 'slow.json'}", "--group-size=64")


# --- results ---


@test()
def test_same_bytes_as_the_local_command(c: Context):
    scope = {"names": ["__module.lm_head/ov_ext::linear/MatMul"], "validate": False}
    cases = [
        ({}, []),
        ({"mode": "int4_sym", "group_size": 32, "ratio": 0.5, "backup_mode": "int8_sym"}, ["--mode=int4_sym", "--group-size=32", "--ratio=0.5", "--backup-mode=int8_sym"]),
        ({"mode": "int4_asym", "group_size": 32, "all_layers": True}, ["--mode=int4_asym", "--group-size=32", "--all-layers"]),
        ({"mode": "nf4", "group_size": 16, "awq": True}, ["--mode=nf4", "--group-size=16", "--awq"]),
        ({"mode": "int4_sym", "group_size": 256, "group_size_fallback_mode": "adjust", "min_adjusted_group_size": 16}, ["--mode=int4_sym", "--group-size=256", "--group-size-fallback=adjust", "--min-adjusted-group-size=16"]),
        ({"mode": "int4_sym", "group_size": 32, "backup_mode": "none"}, ["--mode=int4_sym", "--group-size=32", "--backup-mode=none"]),
        ({"mode": "int8_sym", "ignored_scope": scope}, ["--mode=int8_sym", f"--ignored-name={scope['names'][0]}", "--allow-unmatched-ignored"]),
        ({"mode": "int8_sym", "ignored_scope": ovpress_client.IgnoredScope(patterns=[".*self_attn.*"], types=["Gather"])}, ["--mode=int8_sym", "--ignored-pattern=.*self_attn.*", "--ignored-type=Gather"]),
        ({"mode": "codebook", "codebook": [-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0], "group_size": 32}, ["--mode=codebook", f"--codebook={c.work / 'cb.json'}", "--group-size=32"]),
    ]
    (c.work / "cb.json").write_text("[-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0]")
    seen = set()
    with c.server() as server, Client(server.address) as client:
        for keywords, flags in cases:
            result = client.compress(MODEL, c.work / "out.xml", report=c.work / "report.json", **keywords)
            xml, data = c.local(MODEL, *flags)
            assert result.xml.read_bytes() == xml and result.bin.read_bytes() == data, keywords
            assert result.outcome.bin.sha256 == hashlib.sha256(data).hexdigest()
            assert json.loads((c.work / "report.json").read_text())["weights"]
            assert result.bin_bytes_before > result.bin_bytes_after == len(data)
            seen.add(xml + data)
        assert len(seen) == len(cases), "two sets of options gave one result: the test compares too little"


@test()
def test_outputs(c: Context):
    inputs = {path: path.read_bytes() for path in (MODEL, MODEL.with_suffix(".bin"))}
    with c.server() as server, Client(server.address) as client:
        folder = client.compress(MODEL, f"{c.work}/new/folder/")
        assert files_in(c.work / "new/folder") == ["openvino_model.bin", "openvino_model.xml"]
        assert folder.xml == c.work / "new/folder/openvino_model.xml" and folder.report is None
        client.compress(MODEL, c.work / "new")
        assert (c.work / "new/openvino_model.bin").exists()
        umask = os.umask(0)
        os.umask(umask)
        assert folder.bin.stat().st_mode & 0o777 == 0o666 & ~umask
        again = client.download(folder.job.name.rpartition("/")[2], c.work / "again.xml", report=c.work / "again.json")
        assert again.bin.read_bytes() == folder.bin.read_bytes() and again.report.exists()
        expect(ValueError, lambda: client.compress(MODEL, MODEL), "is the input")
        expect(ValueError, lambda: client.compress(folder.xml, folder.xml.parent), "is the input")
        expect(ValueError, lambda: client.compress(MODEL, c.work / "out.onnx"), "must end in .xml")
        expect(ValueError, lambda: client.compress(MODEL.with_suffix(".bin"), c.work / "x.xml"), "must be the .xml")
        expect(FileNotFoundError, lambda: client.compress(c.work / "absent.xml", c.work / "x.xml"))
        # A failure leaves what was there.
        before = folder.bin.read_bytes()
        expect(errors.InvalidArgumentError, lambda: client.compress(MODEL, folder.xml, mode="int5"))
        assert folder.bin.read_bytes() == before and len(files_in(folder.xml.parent)) == 2
        # A model without constants has no .bin.
        empty = c.work / "empty.xml"
        empty.write_text('<net name="e" version="11"><layers><layer id="0" name="x" type="Parameter" version="opset1"><data shape="1" element_type="f32"/><output><port id="0" precision="FP32"><dim>1</dim></port></output></layer><layer id="1" name="r" type="Result" version="opset1"><input><port id="0" precision="FP32"><dim>1</dim></port></input></layer></layers><edges><edge from-layer="0" from-port="0" to-layer="1" to-port="0"/></edges><rt_info/></net>')
        try:
            assert client.compress(empty, c.work / "empty-out.xml").bin.read_bytes() == b""
        except errors.OvpressError as error:
            # What the server says, the command says too.
            local = subprocess.run([c.ovpress, "compress", empty, "-o", c.work / "l.xml"], capture_output=True, text=True)
            assert local.returncode != 0, error
    assert all(path.read_bytes() == data for path, data in inputs.items())


@test()
def test_nothing_is_sent_twice(c: Context):
    with c.server() as server, Client(server.address) as client:
        client.compress(MODEL, c.work / "a.xml")
        sent = server.metric("ovpress_transfer_bytes_total")
        writes = server.metric("ovpress_rpc_handled_total", "ByteStream/Write")
        result = client.compress(MODEL, c.work / "b.xml")
        assert result.outcome.cache_hit
        assert writes == 2 == server.metric("ovpress_rpc_handled_total", "ByteStream/Write")
        got = server.metric("ovpress_transfer_bytes_total") - sent
        assert got == result.xml.stat().st_size + result.bin.stat().st_size, got
        assert not client.compress(MODEL, c.work / "b.xml", ignore_result_cache=True).outcome.cache_hit


@test()
def test_wrong_option_shows_before_the_weights_are_sent(c: Context):
    with c.server() as server, Client(server.address) as client:
        expect(errors.InvalidArgumentError, lambda: client.compress(MODEL, c.work / "a.xml", mode="int4_sym", group_size=7))
        assert server.metric("ovpress_transfer_bytes_total") == MODEL.stat().st_size


@test()
def test_progress(c: Context):
    model = c.large_model()
    seen = []
    with c.server("--threads=1") as server, Client(server.address) as client:
        client.compress(model, c.work / "o.xml", progress=lambda *step: seen.append((*step, threading.get_ident())), **SLOW)
    assert {step[3] for step in seen} == {threading.get_ident()}, "called on another thread"
    seen = [step[:3] for step in seen]
    phases = list(dict.fromkeys(phase for phase, _, _ in seen))
    order = ["hashing", "uploading", "queued", "planning", "scoring", "compressing", "finishing", "downloading"]
    assert phases == [phase for phase in order if phase in phases], phases
    assert {"hashing", "uploading", "downloading"} < set(phases) and len(phases) > 3, phases
    size = model.stat().st_size + model.with_suffix(".bin").stat().st_size
    for phase in ("hashing", "uploading", "downloading"):
        steps = [step for step in seen if step[0] == phase]
        assert [s[1] for s in steps] == sorted(s[1] for s in steps), phase
        assert steps[-1][1] == steps[-1][2], steps[-1]
        assert phase == "downloading" or steps[-1][2] == size
    assert len([s for s in seen if s[0] == "uploading"]) > 30  # each MiB


# --- breaks ---


def kill_once(server: Server, when) -> tuple[object, list]:
    """A progress function that kills and restarts the server at the first step
    for which `when` holds; and all steps seen after that."""
    after: list = []
    killed = []

    def progress(phase: str, done: int, total: int) -> None:
        if killed:
            after.append((phase, done, total))
        elif when(phase, done, total):
            killed.append(True)
            server.restart_after_kill()

    return progress, after


@test()
def test_upload_goes_on_after_a_killed_server(c: Context):
    model = c.large_model()
    expected = slow_result(c, model)
    with c.server() as server, Client(server.address) as client:
        progress, after = kill_once(server, lambda phase, done, total: phase == "uploading" and done > 0.85 * total)
        result = client.compress(model, c.work / "o.xml", progress=progress, **SLOW)
        assert (result.xml.read_bytes(), result.bin.read_bytes()) == expected
        uploads = [step for step in after if step[0] == "uploading"]
        assert uploads and uploads[0][1] > 60 << 20, "the upload began anew"  # the server syncs each 64 MiB
        assert server.metric("ovpress_uploads_resumed_total") == 1


@test()
def test_job_goes_on_after_a_killed_server(c: Context):
    model = c.large_model()
    expected = slow_result(c, model)
    with c.server("--threads=1") as server, Client(server.address) as client:
        progress, _ = kill_once(server, lambda phase, done, total: phase in ("planning", "compressing"))
        result = client.compress(model, c.work / "o.xml", progress=progress, **SLOW)
        assert (result.xml.read_bytes(), result.bin.read_bytes()) == expected
        assert result.job.attempt == 2, result.job.attempt


@test()
def test_download_goes_on_after_a_killed_server(c: Context):
    with c.server() as server, Client(server.address) as client:
        model = c.large_model()
        job = client.watch(client.submit(model, mode="int8_asym"))
        progress, after = kill_once(server, lambda phase, done, total: phase == "downloading" and done > 8 << 20)
        result = client.download(job, c.work / "o.xml", progress=progress)
        assert (result.xml.read_bytes(), result.bin.read_bytes()) == c.local(model, "--mode=int8_asym")
        assert after[0][1] > 8 << 20, "the download began anew"
        # What the new server sent is less than the whole.
        sent = server.metric("ovpress_transfer_bytes_total")
        assert sent < result.bin.stat().st_size - (6 << 20) + result.xml.stat().st_size, sent


@test()
def test_cut_connections(c: Context):
    model = c.large_model(16)
    expected = c.local(model, "--mode=int8_asym")
    with c.server() as server, Proxy(server.port, limit=24 << 20, cuts=6) as proxy, Client(proxy.address) as client:
        result = client.compress(model, c.work / "o.xml", mode="int8_asym")
        assert (result.xml.read_bytes(), result.bin.read_bytes()) == expected
        # 64 MiB up, 16 down, through connections of 24 MiB.
        assert 3 <= proxy.cut <= 6, proxy.cut


UPLOAD_THEN_DIE = """
import os, signal, sys, ovpress_client
def progress(phase, done, total):
    if phase == "uploading" and done > 0.7 * total:
        os.kill(os.getpid(), signal.SIGKILL)
ovpress_client.Client(sys.argv[1]).compress(sys.argv[2], sys.argv[3], request_id="step-1", progress=progress, mode="int8_sym")
"""


@test()
def test_request_id_goes_on_after_a_killed_client(c: Context):
    model = c.large_model()
    with c.server() as server, Client(server.address) as client:
        died = subprocess.run([sys.executable, "-c", UPLOAD_THEN_DIE, server.address, str(model), str(c.work / "o.xml")])
        assert died.returncode == -signal.SIGKILL, died
        steps = []
        first = client.compress(model, c.work / "o.xml", request_id="step-1", mode="int8_sym", progress=lambda *s: steps.append(s))
        # The .xml is there already; of the .bin more than half is.
        uploads = [done for phase, done, _ in steps if phase == "uploading"]
        assert uploads[1] > 0.4 * uploads[-1], uploads[:3]
        assert client.compress(model, c.work / "p.xml", request_id="step-1", mode="int8_sym").job.name == first.job.name
        error = expect(errors.AlreadyExistsError, lambda: client.submit(model, request_id="step-1", mode="nf4"))
        assert error.code == errors.Code.ALREADY_EXISTS
        assert len(client.list()) == 1


@test()
def test_wrong_bytes(c: Context):
    model = c.work / "m.xml"
    shutil.copy(MODEL, model)
    shutil.copy(MODEL.with_suffix(".bin"), model.with_suffix(".bin"))

    def change(phase: str, done: int, total: int) -> None:
        if phase == "hashing" and done == total:
            data = bytearray(model.with_suffix(".bin").read_bytes())
            data[1000] ^= 1
            model.with_suffix(".bin").write_bytes(data)

    with c.server() as server, Client(server.address) as client:
        error = expect(errors.InvalidArgumentError, lambda: client.compress(model, c.work / "o.xml", progress=change), "SHA-256")
        assert error.domain == "ovpress"
    # And on the way back: right size, one byte differs.
    good = b"q" * 1000
    blob = pb.Blob(sha256=hashlib.sha256(good).hexdigest(), size_bytes=len(good))
    response = pb.CompressModelResponse(model=pb.ModelBlobs(xml=blob, bin=blob), report=blob)
    operation = pb.Operation(name="operations/x", done=True)
    operation.response.type_url = "type.googleapis.com/ovpress.v1.CompressModelResponse"
    operation.response.value = response.SerializeToString()
    for sent, ok in ((good, True), (b"q" * 999 + b"r", False), (good + b"q", False)):
        functions = {"GetOperation": lambda *_: operation, "Read": lambda *_, sent=sent: iter([pb.ReadResponse(data=sent)])}
        out = c.work / f"down-{ok}-{len(sent)}"
        with FakeServer(functions) as fake, Client(f"127.0.0.1:{fake.port}") as client:
            if ok:
                client.download("x", out / "o.xml")
                assert files_in(out) == ["o.bin", "o.xml"]
            else:
                expect(errors.DataLossError, lambda: client.download("x", out / "o.xml"))
                assert files_in(out) == []  # no temporary file either


# --- errors and patience ---


@test()
def test_errors_of_the_real_server(c: Context):
    with c.server("--max-running=1", "--max-queued=1", "--threads=1") as server, Client(server.address, retry_timeout=0) as client:
        error = expect(errors.NotFoundError, lambda: client.status("0" * 32))
        assert error.code == errors.Code.NOT_FOUND and error.domain == "ovpress" and error.reason
        expect(errors.InvalidArgumentError, lambda: client.list(filter="x=1"), "filter")
        broken = c.work / "broken.xml"
        broken.write_bytes(MODEL.read_bytes()[:5000])
        shutil.copy(MODEL.with_suffix(".bin"), broken.with_suffix(".bin"))
        expect(errors.DataLossError, lambda: client.compress(broken, c.work / "o.xml"))
        model = c.large_model()
        jobs = [client.submit(model, **SLOW)]
        wait_until(lambda: client.status(jobs[0]).state == "RUNNING")
        error = expect(errors.FailedPreconditionError, lambda: client.download(jobs[0], c.work / "o.xml"), "is not done")
        assert error.operation == jobs[0].name
        jobs.append(client.submit(model, **SLOW))
        error = expect(errors.ResourceExhaustedError, lambda: client.submit(model, **SLOW), "max_queued")
        assert error.reason == "LIMIT_MAX_QUEUED" and error.metadata == {"limit": "max_queued", "limit_value": "1"}, error.metadata
        assert error.retry_after and error.retry_after > 0
        assert [(v.kind, v.subject) for v in error.violations] == [("quota", "server")]
        for job in reversed(jobs):
            client.cancel(job)
        ended = client.watch(jobs[0])
        assert ended.state == "CANCELLED" and isinstance(ended.error, errors.CancelledError)
        error = expect(errors.CancelledError, ended.result)
        assert error.operation == jobs[0].name
        expect(errors.CancelledError, lambda: client.download(jobs[0], c.work / "o.xml"))
        client.cancel(jobs[0])  # no error
    with Client(server.address, retry_timeout=0) as client:
        expect(errors.UnavailableError, client.capabilities)
        expect(errors.UnavailableError, client.health)


@test()
def test_error_classes_and_details(c: Context):
    answer = {}

    def capabilities(request, context):
        abort(context, answer["code"], "what, where", *answer["details"])

    with FakeServer({"GetCapabilities": capabilities}) as fake, Client(f"127.0.0.1:{fake.port}", retry_timeout=0) as client:
        for code in errors.Code:
            answer.update(code=code, details=[pb.ErrorInfo(reason="WHY", domain="ovpress", metadata={"limit": "x"})])
            error = expect(errors.OvpressError, client.capabilities, "what, where")
            wanted = "".join(word.capitalize() for word in code.name.split("_")) + "Error"
            assert type(error).__name__ == wanted and error.code == code, (type(error), code)
            assert type(error) is getattr(ovpress_client, wanted)
            assert (error.reason, error.domain, error.metadata) == ("WHY", "ovpress", {"limit": "x"})
            answer["details"] = []
            assert type(expect(errors.OvpressError, client.capabilities)) is type(error)
        precondition = pb.PreconditionFailure(violations=[pb.PreconditionFailure_Violation(type="MISSING", subject="blobs/a/1", description="d")])
        request = pb.BadRequest(field_violations=[pb.BadRequest_FieldViolation(field="options.mode", description="unknown")])
        delay = pb.RetryInfo(retry_delay=pb.Duration(seconds=2, nanos=500_000_000))
        answer.update(code=errors.Code.FAILED_PRECONDITION, details=[precondition, request, delay])
        error = expect(errors.FailedPreconditionError, client.capabilities)
        assert error.violations == (
            errors.Violation("precondition", "blobs/a/1", "d", "MISSING"),
            errors.Violation("field", "options.mode", "unknown"),
        )
        assert error.retry_after == 2.5


@test()
def test_a_slow_handshake_is_waited_for(c: Context):
    with c.server() as server, Proxy(server.port, delay=0.7) as proxy, Client(proxy.address, retry_timeout=0.1) as client:
        assert client.capabilities().modes


def test_retries(c: Context):
    calls = []
    plan = {}

    def capabilities(request, context):
        calls.append(time.monotonic())
        if len(calls) <= plan["failures"]:
            abort(context, plan["code"], plan.get("text", "no"), *plan.get("details", ()))
        return pb.GetCapabilitiesResponse(server_version="1.2.3")

    def run(client, **changes):
        calls.clear()
        plan.clear()
        plan.update(changes)
        return client.capabilities()

    delay = pb.RetryInfo(retry_delay=pb.Duration(nanos=700_000_000))
    code = errors.Code
    with FakeServer({"GetCapabilities": capabilities}) as fake, Client(f"127.0.0.1:{fake.port}", retry_timeout=5) as client:
        assert run(client, failures=3, code=code.UNAVAILABLE).server_version == "1.2.3" and len(calls) == 4
        gaps = [b - a for a, b in zip(calls, calls[1:])]
        # 0.1, 0.2, 0.4 s, each longer by up to a half, and never shorter.
        assert all(gap >= 0.1 * 2**i for i, gap in enumerate(gaps)), gaps
        run(client, failures=1, code=code.RESOURCE_EXHAUSTED, details=[delay])
        assert calls[1] - calls[0] >= 0.7, "RetryInfo was not honoured"
        for kind in (code.ABORTED, code.DEADLINE_EXCEEDED, code.CANCELLED):
            run(client, failures=1, code=kind)
        run(client, failures=1, code=code.INTERNAL, text="Received RST_STREAM with error code 2")
        for kind in (code.INVALID_ARGUMENT, code.INTERNAL, code.RESOURCE_EXHAUSTED, code.OUT_OF_RANGE, code.UNAUTHENTICATED, code.DATA_LOSS):
            expect(errors.OvpressError, lambda: run(client, failures=1, code=kind))
            assert len(calls) == 1, kind
    with FakeServer({"GetCapabilities": capabilities}) as fake, Client(f"127.0.0.1:{fake.port}", retry_timeout=1) as client:
        begin = time.monotonic()
        expect(errors.UnavailableError, lambda: run(client, failures=1000, code=code.UNAVAILABLE))
        assert time.monotonic() - begin < 1.5 and len(calls) > 2
        # Told to come back after the end of its patience, it does not wait at all.
        long_delay = pb.RetryInfo(retry_delay=pb.Duration(seconds=60))
        error = expect(errors.UnavailableError, lambda: run(client, failures=1, code=code.UNAVAILABLE, details=[long_delay]))
        assert error.retry_after == 60 and len(calls) == 1


@test()
def test_stalled_streams_end(c: Context):
    stall = threading.Event()
    blob = pb.Blob(sha256="a" * 64, size_bytes=10)
    operation = pb.Operation(name="operations/x", done=True)
    operation.response.type_url = "type.googleapis.com/ovpress.v1.CompressModelResponse"
    operation.response.value = pb.CompressModelResponse(model=pb.ModelBlobs(xml=blob, bin=blob)).SerializeToString()

    def read(request, context):
        yield pb.ReadResponse(data=b"12345")
        stall.wait(20)

    def write(requests, context):
        stall.wait(20)
        return pb.WriteResponse()

    functions = {
        "Read": read,
        "Write": write,
        "GetOperation": lambda *_: operation,
        "FindMissingBlobs": lambda request, _: pb.FindMissingBlobsResponse(missing_blobs=request.blobs),
    }
    with FakeServer(functions) as fake:
        address, patience = f"127.0.0.1:{fake.port}", {"retry_timeout": 0, "idle_timeout": 0.5}
        begin = time.monotonic()
        with Client(address, **patience) as client:
            expect(errors.UnavailableError, lambda: client.download("x", c.work / "o.xml"), "no byte moved")
            expect(errors.UnavailableError, lambda: client.submit(MODEL), "no byte moved")

        async def run() -> None:
            async with AsyncClient(address, **patience) as client:
                for call in (client.download("x", c.work / "o.xml"), client.submit(MODEL)):
                    try:
                        await call
                    except errors.UnavailableError as error:
                        assert "no byte moved" in str(error)
                    else:
                        raise AssertionError("no error")

        asyncio.run(run())
        assert time.monotonic() - begin < 8
        assert files_in(c.work) == []
        stall.set()


# --- jobs ---


@test()
def test_jobs(c: Context):
    with c.server() as server, Client(server.address) as client:
        assert client.health() == "SERVING"
        capabilities = client.capabilities()
        assert {"int8_asym", "nvfp4", "codebook"} <= {mode.name for mode in capabilities.modes}
        assert capabilities.idle_timeout == 120 and capabilities.max_chunk_bytes >= 1 << 20
        names = []
        for i in range(3):
            job = client.submit(MODEL, mode="int8_sym", ratio=None, labels={"team": "a" if i else "b"}, priority=i, request_id=f"id-{i}", ttl=3600, ignore_result_cache=True)
            ended = client.watch(job)
            assert ended.state == "SUCCEEDED" and ended.done and ended.result().bin_bytes_after > 0
            assert (ended.mode, ended.priority, ended.request_id) == ("int8_sym", i, f"id-{i}")
            assert 3500 < (ended.expire_time - ended.end_time).total_seconds() < 3700
            assert ended == client.status(ended.name) == client.status(ended.name.rpartition("/")[2])
            names.insert(0, job.name)
        assert [job.name for job in client.list()] == names
        assert [job.name for job in client.list(limit=2)] == names[:2]
        assert [job.name for job in client.list(filter="labels.team=a AND state=SUCCEEDED")] == names[:2]
        client.delete(names[0])
        expect(errors.NotFoundError, lambda: client.status(names[0]))
        expect(errors.NotFoundError, lambda: client.watch(names[0]))
        full = client.estimate(MODEL, mode="int4_sym", group_size=32)
        assert full.weight_count == len(full.weights) > 5 and full.output_bin_bytes_min == full.output_bin_bytes_max
        short = client.estimate(MODEL, mode="int4_sym", group_size=32, summary_only=True)
        assert not short.weights and short.weight_count == full.weight_count
        result = client.compress(MODEL, c.work / "o.xml", mode="int4_sym", group_size=32)
        assert result.bin.stat().st_size == full.output_bin_bytes_max
        large = c.work / "padded.xml"
        large.write_bytes(MODEL.read_bytes() + b"<!--" + b" " * (4 << 20) + b"-->\n")
        assert client.estimate(large, mode="int4_sym", group_size=32, summary_only=True).weight_count == full.weight_count


# A shell that starts this suite in the background may have told it, and so its
# children, to ignore SIGINT; Python then installs no handler.
INTERRUPTED = """
import signal, sys, ovpress_client
signal.signal(signal.SIGINT, signal.default_int_handler)
print("started", flush=True)
def progress(phase, done, total):
    if phase in ("compressing", "planning"): print("running", flush=True)
try:
    ovpress_client.Client(sys.argv[1]).compress(sys.argv[2], sys.argv[3], progress=progress, detach=sys.argv[4] == "detach",
        mode="codebook", codebook=[(i - 127) / 100 for i in range(256)], group_size=64, ignore_result_cache=True)
except KeyboardInterrupt:
    sys.exit(130)
"""


@test()
def test_interrupt_cancels_unless_detached(c: Context):
    model = c.large_model(64, stored=24)  # two seconds or more on one thread
    with c.server("--threads=1") as server, Client(server.address) as client:
        client.watch(client.submit(model, mode="int8_sym"))  # the weights are there
        for how, state in (("cancel", "CANCELLED"), ("detach", "SUCCEEDED")):
            out = c.work / how
            process = subprocess.Popen([sys.executable, "-c", INTERRUPTED, server.address, str(model), str(out / "o.xml"), how], stdout=subprocess.PIPE, text=True)
            assert [process.stdout.readline() for _ in range(2)] == ["started\n", "running\n"]
            process.send_signal(signal.SIGINT)
            code = process.wait(30)
            assert code == 130, (how, code)
            job = client.watch(client.list(limit=1)[0])
            assert job.state == state, (how, job.state)
            assert files_in(out) == []


@test()
def test_an_interrupt_at_any_moment_leaves_no_job(c: Context):
    model = c.large_model(64, stored=24)
    with c.server("--threads=1") as server, Client(server.address) as client:
        client.watch(client.submit(model, mode="int8_sym"))
        for trial in range(10):
            before = [job.name for job in client.list()]
            out = c.work / f"out{trial}"
            process = subprocess.Popen([sys.executable, "-c", INTERRUPTED, server.address, str(model), str(out / "o.xml"), "cancel"], stdout=subprocess.PIPE, text=True)
            assert process.stdout.readline() == "started\n"
            time.sleep(trial * 0.05)  # the job begins after 0.2 s
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130, trial
            states = [client.watch(job).state for job in client.list() if job.name not in before]
            assert states in ([], ["CANCELLED"]), (trial, states)
            assert files_in(out) == []


@test()
def test_an_interrupt_of_the_submission_cancels_what_the_server_takes(c: Context):
    model = c.large_model()
    with c.server("--threads=1") as server, Client(server.address) as client:
        client.watch(client.submit(model, mode="int8_sym"))
        for kind in ("before the server has it", "after the server took it"):
            transport = client._transport
            unary, calls, late = transport.unary, [], []

            async def interrupted(method, request, response, timeout):
                calls.append(method.rpartition("/")[2])
                if calls[-1] == "CompressModel" and calls.count("CompressModel") == 1:
                    if kind.startswith("after"):
                        late.append(await unary(method, request, response, timeout))
                    raise KeyboardInterrupt
                return await unary(method, request, response, timeout)

            transport.unary = interrupted
            before = [job.name for job in client.list()]
            try:
                client.compress(model, c.work / "o.xml", **SLOW)
                raise AssertionError("not interrupted")
            except KeyboardInterrupt:
                pass
            finally:
                transport.unary = unary
            assert calls[-2:] == ["CompressModel", "CancelOperation"], calls
            new = [client.watch(job) for job in client.list() if job.name not in before]
            assert [job.state for job in new] == ["CANCELLED"], (kind, new)
            assert not late or late[0].name == new[0].name


@test()
def test_the_command_line_cancels_a_job_whose_name_it_never_heard(c: Context):
    came, asked, cancelled = threading.Event(), [], []

    def compress(request, context):
        asked.append(request.request_id)
        if not came.is_set():
            came.set()
            wait_until(lambda: not context.is_active())
        return pb.Operation(name=f"operations/of-{request.request_id}")

    def cancel(request, context):
        cancelled.append(request.name)
        return pb.Empty()

    functions = {"FindMissingBlobs": lambda *_: pb.FindMissingBlobsResponse(), "CompressModel": compress, "CancelOperation": cancel}
    with FakeServer(functions) as server:
        process = subprocess.Popen([c.ovpress, "compress", MODEL, "-o", c.work / "o.xml", "--mode=int8_sym", f"--server=127.0.0.1:{server.port}"], stderr=subprocess.PIPE, text=True)
        assert came.wait(20)
        process.send_signal(signal.SIGINT)
        _, errors_shown = process.communicate(timeout=20)
        assert process.returncode == 130 and "was cancelled" in errors_shown, (process.returncode, errors_shown)
    assert len(asked) == 2 and asked[0] == asked[1] and cancelled == [f"operations/of-{asked[0]}"], (asked, cancelled)
    assert files_in(c.work) == []


@test()
def test_a_server_without_an_object_store_takes_no_address(c: Context):
    with c.server() as server, Client(server.address) as client:
        for call in (
            lambda: client.submit("s3://models/a.xml", mode="int8_sym"),
            lambda: client.compress("s3://models/a.xml", str(c.work) + "/"),
            lambda: client.submit(MODEL, output_address="s3://models/o.xml"),
        ):
            expect(ovpress_client.OvpressError, call, "local directory")
        assert files_in(c.work / "a.xml") == [] and client.list() == []


@test()
def test_raising_progress_cancels(c: Context):
    model = c.large_model()

    def progress(phase: str, done: int, total: int) -> None:
        if phase in ("compressing", "planning"):
            raise LookupError("enough")

    with c.server("--threads=1") as server, Client(server.address) as client:
        expect(LookupError, lambda: client.compress(model, c.work / "o.xml", progress=progress, **SLOW), "enough")
        assert client.watch(client.list()[0]).state == "CANCELLED"
        # A failure of our own side, here the folder that became a file, leaves
        # the job and its result.
        out = c.work / "out"

        def spoil(phase: str, done: int, total: int) -> None:
            if phase == "uploading" and out.is_dir():
                out.rmdir()
                out.write_text("")

        expect(OSError, lambda: client.compress(model, out / "o.xml", progress=spoil, **SLOW))
        assert client.list(limit=1)[0].state == "SUCCEEDED" and len(client.list()) == 2
        # What can be seen before the work is.
        expect(OSError, lambda: client.compress(model, out / "o.xml", **SLOW))
        assert len(client.list()) == 2


@test()
def test_two_clients_at_once(c: Context):
    model = c.large_model(12)
    cases = [({"mode": "int8_asym"}, ["--mode=int8_asym"]), ({"mode": "int4_sym", "group_size": 64}, ["--mode=int4_sym", "--group-size=64"])]
    expected = [c.local(model, *flags) for _, flags in cases]
    with c.server() as server, Client(server.address) as first, Client(server.address) as second:
        with futures.ThreadPoolExecutor(4) as pool:
            # Two clients, and two threads on each.
            runs = [
                pool.submit(client.compress, model, c.work / f"o{i}{j}.xml", **keywords)
                for i, client in enumerate((first, second))
                for j, (keywords, _) in enumerate(cases)
            ]
            results = [run.result() for run in runs]
        for i, result in enumerate(results):
            assert (result.xml.read_bytes(), result.bin.read_bytes()) == expected[i % 2]


# --- asyncio ---


@test()
def test_async(c: Context):
    model = c.large_model(8)
    expected = [c.local(model, "--mode=int8_sym"), slow_result(c, model)]

    async def run() -> None:
        async with AsyncClient(server.address) as client:
            assert await client.health() == "SERVING"
            assert (await client.capabilities()).modes and (await client.estimate(MODEL)).weights
            results = await asyncio.gather(
                client.compress(model, c.work / "a.xml", mode="int8_sym", report=c.work / "a.json"),
                client.compress(model, c.work / "b.xml", **SLOW),
            )
            assert [(r.xml.read_bytes(), r.bin.read_bytes()) for r in results] == expected
            job = await client.watch(await client.submit(model, **SLOW))
            assert (await client.download(job, c.work / "d.xml")).bin.read_bytes() == expected[1][1]
            assert (await client.status(job)).done and len(await client.list()) == 3
            try:
                await client.compress(MODEL, c.work / "e.xml", mode="int5")
            except errors.InvalidArgumentError as error:
                assert error.domain == "ovpress" and "one of: " in error.message
            else:
                raise AssertionError("no error")
            await client.delete(job)
            await client.cancel(results[0].job)

    with c.server() as server:
        asyncio.run(run())


@test()
def test_async_goes_on_after_a_killed_server(c: Context):
    model = c.large_model()
    expected = slow_result(c, model)

    async def run() -> None:
        async with AsyncClient(server.address) as client:
            progress, after = kill_once(server, lambda phase, done, total: phase == "uploading" and done > 0.85 * total)
            result = await client.compress(model, c.work / "o.xml", progress=progress, **SLOW)
            assert (result.xml.read_bytes(), result.bin.read_bytes()) == expected
            assert [step for step in after if step[0] == "uploading"][0][1] > 60 << 20, "the upload began anew"
            assert server.metric("ovpress_uploads_resumed_total") == 1
            progress, after = kill_once(server, lambda phase, done, total: phase == "downloading" and done > 4 << 20)
            again = await client.download(result.job, c.work / "p.xml", progress=progress)
            assert again.bin.read_bytes() == expected[1] and after[0][1] > 4 << 20

    with c.server() as server:
        asyncio.run(run())


@test()
def test_async_cancelled_task_cancels_its_job(c: Context):
    model = c.large_model()

    async def run() -> None:
        async with AsyncClient(server.address) as client:
            for detach, state in ((False, "CANCELLED"), (True, "SUCCEEDED")):
                running = asyncio.Event()

                def progress(phase: str, done: int, total: int) -> None:
                    if phase in ("compressing", "planning"):
                        running.set()

                task = asyncio.ensure_future(client.compress(model, c.work / "o.xml", progress=progress, detach=detach, **SLOW))
                await asyncio.wait_for(running.wait(), 20)
                task.cancel()
                try:
                    await task
                except asyncio.CancelledError:
                    pass
                else:
                    raise AssertionError("the task was not cancelled")
                job = await client.watch((await client.list(limit=1))[0])
                assert job.state == state, (detach, job.state)

    with c.server("--threads=1") as server:
        asyncio.run(run())
    assert not [name for name in files_in(c.work) if name.endswith(".part")]


# --- TLS and tokens ---


def make_certificates(work: pathlib.Path) -> None:
    """A CA, and a key and certificate of a server and of a client."""

    def openssl(*command: object) -> None:
        subprocess.run(["openssl", *map(str, command)], check=True, capture_output=True)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl("req", "-x509", *key, "-days", 2, "-subj", "/CN=test ca", "-keyout", work / "ca.key", "-out", work / "ca.pem")
    for name in ("server", "client"):
        openssl("req", *key, "-subj", f"/CN={name}", "-keyout", work / f"{name}.key", "-out", work / f"{name}.csr")
        (work / "ext").write_text("subjectAltName=DNS:localhost,DNS:other.example\n")
        openssl("x509", "-req", "-days", 2, "-in", work / f"{name}.csr", "-CA", work / "ca.pem", "-CAkey", work / "ca.key", "-CAcreateserial", "-extfile", work / "ext", "-out", work / f"{name}.pem")


@test()
def test_tls_and_tokens(c: Context):
    w = c.work
    make_certificates(w)
    pair = ((w / "server.key").read_bytes(), (w / "server.pem").read_bytes())
    functions = {"GetCapabilities": lambda *_: pb.GetCapabilitiesResponse(server_version="9")}
    (w / "token").write_text("first\n")
    with FakeServer(functions, grpc.ssl_server_credentials([pair])) as fake:
        with Client(f"localhost:{fake.port}", tls_ca=w / "ca.pem", token_file=w / "token") as client:
            assert client.capabilities().server_version == "9"
            (w / "token").write_text("second\n")
            client.capabilities()
            assert [m["authorization"] for m in fake.metadata] == ["Bearer first", "Bearer second"]
        for wrong in ({"tls": True}, {"tls_ca": w / "client.pem"}, {}):
            with Client(f"localhost:{fake.port}", retry_timeout=0, **wrong) as client:
                expect(errors.UnavailableError, client.capabilities)

        async def run() -> None:
            async with AsyncClient(f"localhost:{fake.port}", tls_ca=w / "ca.pem", token="async") as client:
                await client.capabilities()

        asyncio.run(run())
        assert fake.metadata[-1]["authorization"] == "Bearer async"
    mutual = grpc.ssl_server_credentials([pair], (w / "ca.pem").read_bytes(), require_client_auth=True)
    with FakeServer(functions, mutual) as fake:
        with Client(f"localhost:{fake.port}", tls_ca=w / "ca.pem", tls_cert=w / "client.pem", tls_key=w / "client.key", tls_server_name="other.example") as client:
            assert client.capabilities().server_version == "9"
        with Client(f"localhost:{fake.port}", tls_ca=w / "ca.pem", retry_timeout=0) as client:
            expect(errors.UnavailableError, client.capabilities)
    with FakeServer(functions) as fake:
        # Loopback: as plain text, for nobody listens in between, not even a proxy of the environment.
        os.environ["http_proxy"] = "http://127.0.0.1:1"
        try:
            with Client(f"127.0.0.1:{fake.port}", token="secret", retry_timeout=0) as client:
                client.capabilities()
        finally:
            del os.environ["http_proxy"]
        assert fake.metadata[-1]["authorization"] == "Bearer secret"
        with Client(f"127.0.0.1:{fake.port}") as client:
            client.capabilities()
        assert "authorization" not in fake.metadata[-1]
    for host in ("example.com:1", "10.0.0.1:1", "[2001:db8::1]:1", "dns:///example.com:1", "localhost.example.com:1", "127.0.0.1.example.com:1"):
        expect(ValueError, lambda: Client(host, token="secret"), "unencrypted")
        expect(ValueError, lambda: Client(host, token_file=w / "token"), "unencrypted")
        Client(host, token="secret", allow_insecure_token=True).close()
        Client(host, token="secret", tls=True).close()
    for host in ("localhost:1", "127.8.8.8:1", "[::1]:1", "dns:///localhost:1", "unix:/tmp/socket"):
        Client(host, token="secret").close()
    for wrong in ({"token": ""}, {"token": "a\nb"}, {"token": "a", "token_file": "b"}, {"tls_cert": "x"}, {"idle_timeout": 0}):
        expect(ValueError, lambda: Client("localhost:1", **wrong))
    for server in ("", "https://host:1", "http://host"):
        expect(ValueError, lambda: Client(server), "HOST:PORT")
    expect(FileNotFoundError, lambda: Client("localhost:1", token_file=w / "absent"))


# --- options ---


@test()
def test_options(c: Context):
    class Mode(enum.Enum):
        INT4_SYM = "int4_sym"

    class Fallback(str, enum.Enum):
        ADJUST = "adjust"

    scope = types.SimpleNamespace(names=["a"], patterns=["b.*"], types=["C"], subgraphs=[], validate=False)
    advanced = types.SimpleNamespace(group_size_fallback_mode=Fallback.ADJUST, min_adjusted_group_size=16, codebook=None, statistics_path=None)
    # As a script writes it for NNCF, with arguments that ask for nothing.
    proto = options.options_to_proto({"mode": Mode.INT4_SYM, "ratio": 1, "group_size": -1, "ignored_scope": scope, "all_layers": False, "advanced_parameters": advanced, "dataset": None, "subset_size": 128, "awq": None, "gptq": False, "compression_format": "dequantize", "sensitivity_metric": None})
    assert proto == pb.CompressionOptions(mode="int4_sym", ratio=1.0, group_size=-1, all_layers=False, group_size_fallback="adjust", min_adjusted_group_size=16, ignored_scope=pb.IgnoredScope(names=["a"], patterns=["b.*"], types=["C"], allow_unmatched=True))
    assert options.options_to_proto({}) == pb.CompressionOptions(mode="int8_asym")
    assert not options.options_to_proto({}).HasField("ratio") and proto.HasField("all_layers")
    assert options.options_to_proto({"codebook": (1, 2.5)}).codebook == b"[1.0, 2.5]"
    for wrong in ({"dataset": [1]}, {"gptq": True}, {"scale_estimation": True}, {"lora_correction": True}, {"compression_format": "fake_quantize"}, {"ignored_scope": {"subgraphs": [1]}}):
        expect(ValueError, lambda: options.options_to_proto(wrong))
    for wrong in ({"mode": 3}, {"ignored_scope": "name"}, {"ignored_scope": {"names": "name"}}, {"ignored_scope": {"name": []}}, {"codebook": 3}):
        expect(TypeError, lambda: options.options_to_proto(wrong))
    request = options.request_to_proto({"ttl": 1.5, "memory_budget": 1 << 26, "labels": {"a": "b"}, "measure_error": True})
    assert (request.ttl.seconds, request.ttl.nanos) == (1, 500_000_000) and not request.HasField("max_run_time")
    assert request.settings.memory_budget_bytes == 1 << 26 and dict(request.labels) == {"a": "b"}
    assert options.request_to_proto({"output_address": "s3://b/o.xml"}).output_address.xml == "s3://b/o.xml"
    assert not request.HasField("output_address")
    with Client("localhost:1") as client:
        expect(ValueError, lambda: client.compress(MODEL, "s3://b/o.xml"), "output_address")
        for call in (lambda: client.compress(MODEL, "o.xml", groupsize=3), lambda: client.submit(MODEL, sensitivity=1), lambda: client.estimate(MODEL, labels={})):
            expect(TypeError, call, "unexpected keyword argument")
    # Every field of the contract has a keyword: a new one is not forgotten.
    renamed = {"group_size_fallback": "group_size_fallback_mode"}
    fields = {renamed.get(field.name, field.name) for field in pb.CompressionOptions.DESCRIPTOR.fields}
    assert fields <= set(options.CompressionKeywords.__annotations__), fields
    fields = {field.name for field in pb.CompressModelRequest.DESCRIPTOR.fields} - {"model", "model_address", "options", "settings", "validate_only"}
    assert fields <= set(options.JobKeywords.__annotations__), fields
    fields = {field.name for field in pb.IgnoredScope.DESCRIPTOR.fields} - {"allow_unmatched"} | {"validate"}
    assert fields == set(ovpress_client.IgnoredScope.__dataclass_fields__), fields


# --- the package ---


@test()
def test_wheel(c: Context):
    with zipfile.ZipFile(c.wheel) as wheel:
        names = wheel.namelist()
        top = {name.partition("/")[0] for name in names}
        assert top == {"ovpress_client", f"ovpress_client-{ovpress_client.__version__}.dist-info"}, top
        assert {"ovpress_client/py.typed", "ovpress_client/_messages.pyi", "ovpress_client/_messages.py"} <= set(names)
        assert any(name.endswith("LICENSE") for name in names)
    assert pathlib.Path(ovpress_client.__file__).resolve().parent.parent.name == "site-packages", ovpress_client.__file__
    asked = sorted(re.split(r"[<>=~! ;]", text)[0] for text in importlib.metadata.requires("ovpress-client"))
    assert asked == ["grpcio", "protobuf"], asked
    there = {distribution.metadata["Name"].lower() for distribution in importlib.metadata.distributions()}
    assert there <= {"ovpress-client", "grpcio", "protobuf", "typing_extensions", "typing-extensions", "pip", "setuptools"}, there
    version = re.search(r"project\(ovpress VERSION (\S+)", (REPOSITORY / "CMakeLists.txt").read_text())
    assert version and version.group(1) == ovpress_client.__version__
    for path in (PACKAGE / "src").rglob("*.py"):
        ast.parse(path.read_text(), feature_version=(3, 9))
        assert "__future__" in path.read_text() or path.name in ("__init__.py", "_version.py", "_messages.py"), path


@test("crowded")
def test_messages_are_fresh(c: Context):
    done = subprocess.run([sys.executable, PACKAGE / "tools/generate_messages.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


BESIDE = """
import importlib, sys
names = sys.argv[2:]
for name in names: importlib.import_module(name)
from google.longrunning import operations_pb2
from google.rpc import status_pb2, error_details_pb2
import google.api_core.exceptions, ovpress_client
from ovpress_client import _messages as pb
assert status_pb2.Status is not pb.Status
theirs = status_pb2.Status(code=5, message="x")
theirs.details.add().Pack(error_details_pb2.ErrorInfo(reason="R", domain="d"))
error = ovpress_client.errors.error_from_status(pb.Status.FromString(theirs.SerializeToString()))
assert isinstance(error, ovpress_client.NotFoundError) and error.reason == "R"
with ovpress_client.Client(sys.argv[1]) as client:
    assert client.health() == "SERVING" and client.capabilities().modes
    try: client.status("0" * 32)
    except ovpress_client.NotFoundError as e: assert e.domain == "ovpress"
"""


@test("crowded")
def test_beside_googleapis_common_protos(c: Context):
    theirs = ["google.rpc.status_pb2", "google.rpc.error_details_pb2", "google.rpc.code_pb2", "google.longrunning.operations_pb2", "google.api_core.operation", "grpc_status.rpc_status", "grpc_health.v1.health_pb2"]
    with c.server() as server:
        for order in ([*theirs, "ovpress_client"], ["ovpress_client", *theirs]):
            for implementation in ("upb", "python"):
                environment = {**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": implementation}
                done = subprocess.run([sys.executable, "-c", BESIDE, server.address, *order], capture_output=True, text=True, env=environment)
                assert done.returncode == 0, f"{implementation} {order[0]}: {done.stderr}"
        # Also beside code that someone generated from our own .proto files.
        stubs = c.work / "stubs"
        stubs.mkdir()
        include = importlib.import_module("importlib.resources").files("grpc_tools") / "_proto"
        root = REPOSITORY / "proto"
        protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{root}", f"-I{include}", f"--python_out={stubs}", "ovpress/v1/compression.proto"]
        subprocess.run(protoc, check=True)
        done = subprocess.run([sys.executable, "-c", BESIDE, server.address, "ovpress.v1.compression_pb2", "ovpress_client"], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(stubs)})
        assert done.returncode == 0, done.stderr


@test("crowded")
def test_types(c: Context):
    def mypy(*arguments: object) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "mypy", "--strict", f"--cache-dir={c.work / 'cache'}", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=c.work)

    done = mypy(f"--config-file={PACKAGE / 'pyproject.toml'}", "-p", "ovpress_client")
    assert done.returncode == 0, done.stdout
    # As a user: the types of the installed package, py.typed found.
    done = mypy("--config-file=", HERE / "typed_use.py")
    assert done.returncode == 0, done.stdout
    wrong = c.work / "wrong.py"
    wrong.write_text("import ovpress_client\nc = ovpress_client.Client('h:1')\nc.compress('a.xml', 'b.xml', group_sze=3)\nx: int = c.list()\n")
    done = mypy("--config-file=", wrong)
    assert 'Unexpected keyword argument "group_sze"' in done.stdout and "Found 2 errors" in done.stdout, done.stdout


# --- examples and README ---

EXAMPLES = PACKAGE / "examples"


def code_blocks() -> list[tuple[str, str]]:
    """(where, Python code) of all that is shown to users."""
    blocks = [(path.name, path.read_text()) for path in sorted(EXAMPLES.glob("*.py"))]
    for path in sorted(EXAMPLES.glob("*.y*ml")):
        for text in python_in(load_yaml(path)):
            blocks.append((path.name, text))
    readme = (PACKAGE / "README.md").read_text()
    blocks += [("README.md", text) for text in re.findall(r"^```python\n(.*?)^```", readme, re.M | re.S)]
    return blocks


def load_yaml(path: pathlib.Path):
    import yaml

    return yaml.safe_load(path.read_text())


def python_in(node) -> list[str]:
    """The scripts of an Argo template or a GitHub Actions job."""
    found = []
    if isinstance(node, dict):
        if "source" in node:
            found.append(node["source"])
        if node.get("shell") == "python":
            found.append(node["run"])
        for value in node.values():
            found += python_in(value)
    elif isinstance(node, list):
        for value in node:
            found += python_in(value)
    return found


@test("crowded")
def test_examples_use_what_there_is(c: Context):
    methods = {name: getattr(Client, name) for name in ("compress", "submit", "status", "watch", "download", "list", "cancel", "delete", "estimate")}
    known = {name: {*inspect.signature(method).parameters} for name, method in methods.items()}
    for name, keywords in (("compress", options.JobKeywords), ("submit", options.JobKeywords), ("estimate", options.CompressionKeywords)):
        known[name] = known[name] - {"options"} | set(keywords.__annotations__)
    known["Client"] = known["AsyncClient"] = {*inspect.signature(Client.__init__).parameters}
    known["compress_weights"] = {*inspect.signature(ovpress_client.compress_weights).parameters} - {"options"} | set(options.CompressionKeywords.__annotations__)
    known["IgnoredScope"] = {*ovpress_client.IgnoredScope.__dataclass_fields__}
    seen = set()
    blocks = code_blocks()
    assert len([b for b in blocks if b[0] == "README.md"]) > 3 and {b[0] for b in blocks} >= {path.name for path in EXAMPLES.iterdir() if path.suffix != ".sh" and path.is_file()}
    for where, text in blocks:
        tree = ast.parse(text)
        compile(tree, where, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ovpress_client":
                assert hasattr(ovpress_client, node.attr), f"{where}: ovpress_client.{node.attr}"
            if isinstance(node, ast.ImportFrom) and node.module == "ovpress_client":
                assert all(hasattr(ovpress_client, alias.name) for alias in node.names), where
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name == "compress" and isinstance(node.func, ast.Name):
                continue  # a function of the example's own
            for keyword in node.keywords:
                if name in known and keyword.arg is not None:
                    seen.add(name)
                    assert keyword.arg in known[name], f"{where}: {name}({keyword.arg}=)"
    assert {"compress", "submit", "Client", "compress_weights", "IgnoredScope"} <= seen, seen
    # Command lines: each flag is in --help of its command.
    texts = [(path.name, path.read_text()) for path in (*EXAMPLES.glob("*.sh"), PACKAGE / "README.md")]
    lines = [(where, line) for where, text in texts for line in text.replace("\\\n", " ").splitlines() if re.match(r"(\$ )?ovpress \w", line)]
    container = next(t["container"] for t in load_yaml(EXAMPLES / "argo.yaml")["spec"]["templates"] if "container" in t)
    lines.append(("argo.yaml", " ".join([*container["command"], *container["args"]])))
    for where, line in lines:
        command = re.search(r"ovpress (\w+)", line).group(1)
        text = subprocess.run([c.ovpress, command, "--help"], capture_output=True, text=True, check=True).stdout
        for flag in re.findall(r"(?<!\S)--[a-z-]+", line):
            assert re.search(rf"{flag}\b(?!-)", text), f"{where}: ovpress {command} has no {flag}"
    assert len(lines) >= 2


def run_example(c: Context, *command: object, path: str = "", **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        cwd=c.work,
        env={**os.environ, **environment, "PATH": f"{path}:{os.environ['PATH']}"},
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def same_files(folder: pathlib.Path, expected: tuple[bytes, bytes]) -> None:
    assert (folder / "openvino_model.xml").read_bytes() == expected[0]
    assert (folder / "openvino_model.bin").read_bytes() == expected[1]


def copy_model(c: Context, folder: str) -> None:
    (c.work / folder).mkdir(parents=True)
    for suffix in (".xml", ".bin"):
        shutil.copy(MODEL.with_suffix(suffix), c.work / folder)


@test("crowded")
def test_example_argo(c: Context):
    expected = c.local(MODEL, "--mode=int4_sym", "--ratio=0.8", "--group-size=32")
    templates = {t["name"]: t for t in load_yaml(EXAMPLES / "argo.yaml")["spec"]["templates"]}
    values = {p["name"]: p["value"] for p in load_yaml(EXAMPLES / "argo.yaml")["spec"]["arguments"]["parameters"]}
    with c.server() as server:
        values.update({"server": server.address, "group-size": "32"})

        def fill(text: str) -> str:
            for name, value in values.items():
                text = text.replace("{{workflow.parameters.%s}}" % name, value)
            text = text.replace("{{workflow.uid}}", "8d0c5f64").replace("{{workflow.name}}", "w").replace("/mnt/", f"{c.work}/")
            assert "{{" not in text, text
            return text

        copy_model(c, "in")
        script = c.work / "script"
        script.write_text(fill(templates["compress"]["script"]["source"]))
        run_example(c, sys.executable, script)
        same_files(c.work / "out", expected)
        assert (c.work / "out/report.json").exists() and 3 < float((c.work / "bits_per_weight").read_text()) < 8
        shutil.rmtree(c.work / "out")
        for mount in templates["compress-cli"]["container"]["volumeMounts"]:
            pathlib.Path(fill(mount["mountPath"] + "/")).mkdir()
        run_example(c, c.ovpress, *[fill(argument) for argument in templates["compress-cli"]["container"]["args"]])
        same_files(c.work / "out", expected)


@test("crowded")
def test_example_kubeflow(c: Context):
    fake = types.ModuleType("kfp")
    fake.dsl = types.SimpleNamespace(component=lambda **_: lambda function: function, Input=list, Output=list, Model=int, Metrics=int)
    sys.modules["kfp"] = fake
    sys.path.insert(0, str(EXAMPLES))
    component = importlib.import_module("kubeflow_component").compress_openvino
    copy_model(c, "in")
    logged = {}
    with c.server() as server:
        compressed = types.SimpleNamespace(path=str(c.work / "out"), metadata={})
        metrics = types.SimpleNamespace(log_metric=logged.__setitem__)
        model = types.SimpleNamespace(path=str(c.work / "in"))
        component(model=model, compressed=compressed, metrics=metrics, server=server.address, mode="int4_sym", ratio=0.8, group_size=32, run_id="run-1")
        same_files(c.work / "out", c.local(MODEL, "--mode=int4_sym", "--ratio=0.8", "--group-size=32"))
        assert logged["bin_bytes_after"] < logged["bin_bytes_before"] and len(compressed.metadata["sha256"]) == 64
        component(model=model, compressed=compressed, metrics=metrics, server=server.address)
        same_files(c.work / "out", c.local(MODEL))


@test("crowded")
def test_example_airflow(c: Context):
    class BaseOperator:
        def __init__(self, task_id, retries=0):
            self.log = types.SimpleNamespace(info=lambda *_: None)

    class DAG(contextlib.nullcontext):
        def __init__(self, dag_id, schedule, start_date, catchup):
            super().__init__(self)

    airflow, sdk = types.ModuleType("airflow"), types.ModuleType("airflow.sdk")
    airflow.DAG, sdk.BaseOperator, airflow.sdk = DAG, BaseOperator, sdk
    sys.modules.update({"airflow": airflow, "airflow.sdk": sdk})
    sys.path.insert(0, str(EXAMPLES))
    module = importlib.import_module("airflow_operator")
    module.make_dag()
    context = {"ti": types.SimpleNamespace(dag_id="d", run_id="manual__2025-01-01T00:00:00+00:00", task_id="t")}
    with c.server("--threads=1") as server, Client(server.address) as client:
        operator = module.OvpressCompressOperator(task_id="t", model=str(MODEL), output=str(c.work / "out/"), server=server.address, options={"mode": "int8_sym"})
        (c.work / "out").mkdir()
        value = operator.execute(context)
        assert json.loads(json.dumps(value)) == value and pathlib.Path(value["xml"]).exists()
        assert pathlib.Path(value["xml"]).with_suffix(".bin").read_bytes() == c.local(MODEL, "--mode=int8_sym")[1]
        operator.execute(context)
        assert len(client.list()) == 1  # a retried task is the same job
        operator = module.OvpressCompressOperator(task_id="t", model=str(c.large_model()), output=str(c.work / "o.xml"), server=server.address, options=SLOW)
        context["ti"].task_id = "slow"
        killer = threading.Thread(target=lambda: (wait_until(lambda: operator._job), operator.on_kill()))
        killer.start()
        expect(errors.CancelledError, lambda: operator.execute(context))
        killer.join()


@test("crowded")
def test_example_github_actions(c: Context):
    make_certificates(c.work)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(c.work / "server.pem", c.work / "server.key")
    context.set_alpn_protocols(["h2"])
    copy_model(c, "in")
    (text,) = python_in(load_yaml(EXAMPLES / "github_actions.yml"))
    text = text.replace("group_size=128", "group_size=32")
    with c.server() as server, Proxy(server.port, tls=context) as proxy:
        run_example(c, sys.executable, "-c", text, OVPRESS_SERVER=f"localhost:{proxy.port}", OVPRESS_CA=(c.work / "ca.pem").read_text(), OVPRESS_TOKEN="t", RUN="gh-1", GITHUB_STEP_SUMMARY="summary")
    same_files(c.work / "out", c.local(MODEL, "--mode=int4_sym", "--ratio=0.8", "--group-size=32"))
    assert re.fullmatch(r"\d+ -> \d+ bytes, \d\.\d\d bits per weight\n", (c.work / "summary").read_text())


@test("crowded")
def test_example_hugging_face(c: Context):
    tools = c.work / "tools"
    tools.mkdir()
    (tools / "optimum-cli").write_text(f"#!/bin/sh\nset -e\n[ \"$1 $2 $3 $4 $5 $6\" = 'export openvino --model some/model --weight-format fp16' ]\nmkdir -p $7\ncp {MODEL.parent}/* $7\necho t > $7/openvino_tokenizer.xml\n")
    (tools / "optimum-cli").chmod(0o755)
    (tools / "ovpress").symlink_to(c.ovpress)
    (tools / "openvino_genai.py").write_text("class LLMPipeline:\n    def __init__(self, folder, device): self.folder = folder\n    def generate(self, prompt, max_new_tokens): return 'from ' + self.folder\n")
    expected = c.local(MODEL, "--mode=int4_sym", "--ratio=0.8", "--group-size=128", "--group-size-fallback=adjust")
    with c.server() as server:
        out = run_example(c, sys.executable, EXAMPLES / "huggingface_to_genai.py", "some/model", c.work / "a", server.address, path=str(tools), PYTHONPATH=str(tools))
        assert f"from {c.work}/a/int4" in out and "bits per weight" in out
        run_example(c, EXAMPLES / "huggingface_to_genai.sh", "some/model", c.work / "b", server.address, path=str(tools))
    for folder in ("a", "b"):
        same_files(c.work / folder / "int4", expected)
        assert (c.work / folder / "int4/openvino_tokenizer.xml").read_text() == "t\n"


@test("openvino")
def test_example_nncf(c: Context):
    import nncf
    import openvino

    parameters = set(inspect.signature(nncf.compress_weights).parameters) - {"model"}
    assert parameters <= set(options.CompressionKeywords.__annotations__), parameters
    assert {*nncf.IgnoredScope.__dataclass_fields__} - {"subgraphs"} == {*ovpress_client.IgnoredScope.__dataclass_fields__}
    with c.server() as server:
        run_example(c, sys.executable, EXAMPLES / "nncf_drop_in.py", MODEL, c.work / "ours.xml", OVPRESS_SERVER=server.address)
        scope = nncf.IgnoredScope(patterns=[".*down_proj.*"], validate=False)
        arguments = {"mode": nncf.CompressWeightsMode.INT4_SYM, "group_size": 32, "ratio": 0.8, "ignored_scope": scope}
        # The very arguments that NNCF takes, its enums and objects included.
        fallback = nncf.quantization.advanced_parameters.GroupSizeFallbackMode.ADJUST
        advanced = nncf.AdvancedCompressionParameters(group_size_fallback_mode=fallback)
        model = openvino.Core().read_model(MODEL)
        with Client(server.address) as client:
            ours = ovpress_client.compress_weights(model, client=client, advanced_parameters=advanced, backup_mode=nncf.BackupMode.INT8_SYM, **arguments)
        openvino.save_model(ours, c.work / "second.xml", compress_to_fp16=False)
        second = nncf.compress_weights(openvino.Core().read_model(MODEL), advanced_parameters=advanced, backup_mode=nncf.BackupMode.INT8_SYM, **arguments)
        openvino.save_model(second, c.work / "second-nncf.xml", compress_to_fp16=False)
        assert (c.work / "second.bin").read_bytes() == (c.work / "second-nncf.bin").read_bytes()
    theirs = nncf.compress_weights(openvino.Core().read_model(MODEL), **arguments)
    openvino.save_model(theirs, c.work / "theirs.xml", compress_to_fp16=False)
    assert (c.work / "ours.bin").read_bytes() == (c.work / "theirs.bin").read_bytes()
    assert model.get_ops() and "int4" not in str(model.get_rt_info())  # the input is as it was


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--group", required=True)
    parser.add_argument("--server-binary", type=pathlib.Path, required=True)
    parser.add_argument("--ovpress", type=pathlib.Path, required=True)
    parser.add_argument("--wheel", type=pathlib.Path, required=True)
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    passed = failed = 0
    with tempfile.TemporaryDirectory(prefix="ovpress-suite-") as folder:
        for group, function in TESTS:
            if group != arguments.group or (arguments.names and function.__name__ not in arguments.names):
                continue
            begin = time.monotonic()
            try:
                work = pathlib.Path(tempfile.mkdtemp(dir=folder))
                function(Context(arguments, work))
                passed += 1
                print(f"ok   {function.__name__} ({time.monotonic() - begin:.1f} s)", flush=True)
                shutil.rmtree(work, ignore_errors=True)
            except Exception:
                failed += 1
                print(f"FAIL {function.__name__}\n{traceback.format_exc()}", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
