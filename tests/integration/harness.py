"""The real server over a real socket, and a client that shares no code with ours
(Python's grpcio with generated stubs)."""

from __future__ import annotations

import hashlib
import importlib
import pathlib
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid

import grpc
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / "tests/data/models/llama/openvino_model.xml"
CHUNK = 1 << 20


def generate_stubs(folder: pathlib.Path):
    from grpc_tools import protoc

    protos = [str(p.relative_to(ROOT / "proto")) for p in (ROOT / "proto").rglob("*.proto")]
    arguments = ["protoc", f"-I{ROOT / 'proto'}", f"--python_out={folder}", f"--grpc_python_out={folder}"]
    well_known = pathlib.Path(importlib.import_module("grpc_tools").__file__).parent / "_proto"
    if protoc.main(arguments + [f"-I{well_known}"] + protos) != 0:
        raise RuntimeError("protoc failed")
    sys.path.insert(0, str(folder))


class Server:
    # (command, stderr=) -> what behaves like a Popen; tests/access/contained.py has another.
    launch = staticmethod(subprocess.Popen)

    def __init__(self, binary: pathlib.Path, data: pathlib.Path, *flags: str):
        self.binary, self.data, self.flags = binary, data, flags
        self.process = None
        self.listen = "127.0.0.1:0"

    def start(self):
        port_file = self.data.with_suffix(".port")
        port_file.unlink(missing_ok=True)
        command = [self.binary, f"--listen={self.listen}", "--metrics=127.0.0.1:0", f"--data-dir={self.data}", f"--port-file={port_file}"]
        self.log = open(self.data.with_suffix(".log"), "ab")
        self.process = self.launch([*map(str, command), *self.flags], stderr=self.log)
        for _ in range(1000):
            if port_file.exists():
                break
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended: {self.data.with_suffix('.log').read_text()[-500:]}")
            time.sleep(0.01)
        self.port, self.http_port = port_file.read_text().split()
        return self

    def client(self) -> "Client":
        return Client(f"127.0.0.1:{self.port}")

    def page(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.kill()
        self.log.close()


class Client:
    def __init__(self, address: str, channel: grpc.Channel | None = None):
        from google.bytestream import bytestream_pb2, bytestream_pb2_grpc
        from google.longrunning import operations_pb2, operations_pb2_grpc
        from ovpress.v1 import compression_pb2, compression_pb2_grpc

        self.bs, self.lro, self.pb = bytestream_pb2, operations_pb2, compression_pb2
        self.channel = channel or grpc.insecure_channel(address)
        self.bytes = bytestream_pb2_grpc.ByteStreamStub(self.channel)
        self.operations = operations_pb2_grpc.OperationsStub(self.channel)
        self.compression = compression_pb2_grpc.WeightCompressionStub(self.channel)

    def blob(self, data: bytes):
        return self.pb.Blob(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))

    def upload_name(self, data: bytes, name: str | None = None) -> str:
        return f"uploads/{name or uuid.uuid4()}/blobs/{hashlib.sha256(data).hexdigest()}/{len(data)}"

    def write(self, name: str, data: bytes, start: int = 0, finish: bool = True, chunk: int = CHUNK):
        def messages():
            at = start
            first = True
            while first or at < len(data):
                part = data[at : at + chunk]
                yield self.bs.WriteRequest(resource_name=name if first else "", write_offset=at, data=part, finish_write=finish and at + len(part) >= len(data))
                at += len(part)
                first = False

        return self.bytes.Write(messages(), timeout=60)

    def upload(self, data: bytes):
        assert self.write(self.upload_name(data), data).committed_size == len(data)
        return self.blob(data)

    def read(self, blob, offset: int = 0, limit: int = 0) -> bytes:
        name = f"blobs/{blob.sha256}/{blob.size_bytes}"
        return b"".join(m.data for m in self.bytes.Read(self.bs.ReadRequest(resource_name=name, read_offset=offset, read_limit=limit), timeout=60))

    def upload_model(self, xml: bytes, data: bytes):
        return self.pb.ModelBlobs(xml=self.upload(xml), bin=self.upload(data))

    def submit(self, model, **fields):
        options = self.pb.CompressionOptions(**fields.pop("options", {"mode": "int8_asym"}))
        return self.compression.CompressModel(self.pb.CompressModelRequest(model=model, options=options, **fields), timeout=60)

    def wait(self, operation, seconds: int = 60):
        operation = self.operations.WaitOperation(self.lro.WaitOperationRequest(name=operation.name, timeout={"seconds": seconds}), timeout=seconds + 10)
        assert operation.done, operation
        return operation

    def result(self, operation):
        assert not operation.HasField("error"), operation.error
        response = self.pb.CompressModelResponse()
        assert operation.response.Unpack(response)
        return response

    def metadata(self, operation):
        metadata = self.pb.CompressModelMetadata()
        assert operation.metadata.Unpack(metadata)
        return metadata


def wait_until(condition, seconds: float = 20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def wide_model(rows: int, columns: int) -> str:
    """One MatMul without transposition: the scales of its weight run across the rows."""
    return f"""<?xml version="1.0"?>
<net name="wide" version="11"><layers>
<layer id="0" name="x" type="Parameter" version="opset1"><data shape="1,{rows}" element_type="f32"/><output><port id="0" precision="FP32" names="x"><dim>1</dim><dim>{rows}</dim></port></output></layer>
<layer id="1" name="w" type="Const" version="opset1"><data element_type="f32" shape="{rows}, {columns}" offset="0" size="{rows * columns * 4}"/><output><port id="0" precision="FP32"><dim>{rows}</dim><dim>{columns}</dim></port></output></layer>
<layer id="2" name="m" type="MatMul" version="opset1"><data transpose_a="false" transpose_b="false"/><input><port id="0" precision="FP32"><dim>1</dim><dim>{rows}</dim></port><port id="1" precision="FP32"><dim>{rows}</dim><dim>{columns}</dim></port></input><output><port id="2" precision="FP32"><dim>1</dim><dim>{columns}</dim></port></output></layer>
<layer id="3" name="r" type="Result" version="opset1"><input><port id="0" precision="FP32"><dim>1</dim><dim>{columns}</dim></port></input></layer>
</layers><edges><edge from-layer="0" from-port="0" to-layer="2" to-port="0"/><edge from-layer="1" from-port="0" to-layer="2" to-port="1"/><edge from-layer="2" from-port="2" to-layer="3" to-port="0"/></edges><rt_info/></net>
"""


def unbroken(call, tries: int = 3):
    """call() again where gRPC's transport reset its stream: a bare stub goes on by itself, as our clients do."""
    for left in reversed(range(tries)):
        try:
            return call()
        except grpc.RpcError as error:
            if not left or "RST_STREAM" not in (error.details() or ""):
                raise


def expect(code, call, text: str = ""):
    try:
        call()
    except grpc.RpcError as error:
        assert error.code() == code, f"{error.code()} instead of {code}: {error.details()}"
        assert text in error.details(), error.details()
        return error
    raise AssertionError(f"no error; expected {code}")


def details(error, kind):
    from google.rpc import error_details_pb2, status_pb2

    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    wanted = getattr(error_details_pb2, kind)()
    for detail in status.details:
        if detail.Unpack(wanted):
            return wanted
    raise AssertionError(f"no {kind} in {status}")


class Context:
    def __init__(self, build: pathlib.Path, work: pathlib.Path, kills: int, patience: float = 1):
        self.work, self.kills, self.patience = work, kills, patience
        self.server_binary = build / "server/ovpress-server"
        self.ovpress = build / "client/cli/ovpress"
        self.xml, self.bin = MODEL.read_bytes(), MODEL.with_suffix(".bin").read_bytes()
        self._names = 0

    def server(self, *flags: str) -> Server:
        self._names += 1
        return Server(self.server_binary, self.work / f"data{self._names}", *flags)

    def local(self, xml: pathlib.Path, *flags: str) -> tuple[bytes, bytes]:
        out = self.work / "local.xml"
        subprocess.run([self.ovpress, "compress", xml, "-o", out, "--quiet", *flags], check=True)
        return out.read_bytes(), out.with_suffix(".bin").read_bytes()

    def large_model_files(self, count: int = 64) -> tuple[pathlib.Path, bytes, bytes]:
        xml, data = self.large_model(count)
        path = self.work / "chain.xml"
        path.write_bytes(xml)
        path.with_suffix(".bin").write_bytes(data)
        return path, xml, data

    def large_model(self, count: int = 64) -> tuple[bytes, bytes]:
        """Constants of 4 MiB, 256 MiB of weights with 64, behind MatMuls in a chain."""
        rows = 1024
        layers, edges = [], []
        layers.append(f'<layer id="0" name="x" type="Parameter" version="opset1"><data shape="1,{rows}" element_type="f32"/><output><port id="0" precision="FP32" names="x"><dim>1</dim><dim>{rows}</dim></port></output></layer>')
        last = 0
        for i in range(count):
            weight, matmul = 2 * i + 1, 2 * i + 2
            layers.append(f'<layer id="{weight}" name="w{i}" type="Const" version="opset1"><data element_type="f32" shape="{rows}, {rows}" offset="{i * rows * rows * 4}" size="{rows * rows * 4}"/><output><port id="0" precision="FP32"><dim>{rows}</dim><dim>{rows}</dim></port></output></layer>')
            layers.append(f'<layer id="{matmul}" name="m{i}" type="MatMul" version="opset1"><data transpose_a="false" transpose_b="true"/><input><port id="0" precision="FP32"><dim>1</dim><dim>{rows}</dim></port><port id="1" precision="FP32"><dim>{rows}</dim><dim>{rows}</dim></port></input><output><port id="2" precision="FP32"><dim>1</dim><dim>{rows}</dim></port></output></layer>')
            edges.append(f'<edge from-layer="{last}" from-port="{0 if last == 0 else 2}" to-layer="{matmul}" to-port="0"/><edge from-layer="{weight}" from-port="0" to-layer="{matmul}" to-port="1"/>')
            last = matmul
        end = 2 * count + 1
        layers.append(f'<layer id="{end}" name="r" type="Result" version="opset1"><input><port id="0" precision="FP32"><dim>1</dim><dim>{rows}</dim></port></input></layer>')
        edges.append(f'<edge from-layer="{last}" from-port="2" to-layer="{end}" to-port="0"/>')
        xml = f'<?xml version="1.0"?>\n<net name="chain" version="11"><layers>{"".join(layers)}</layers><edges>{"".join(edges)}</edges><rt_info/></net>\n'.encode()
        return xml, np.random.default_rng(7).standard_normal(count * rows * rows, dtype=np.float32).tobytes()
