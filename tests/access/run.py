#!/usr/bin/env python3
"""Access: the real server over real sockets, called by Python's grpcio with
generated stubs, by our command line and by our Python client; as callers who
may, who may not, and who pretend.

  tests/access/run.py --build build/ci [NAME...]

The last line is "N passed, N failed"."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import pathlib
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

import grpc

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/integration"), str(ROOT / "client/python/src")]

import credentials  # noqa: E402
import harness  # noqa: E402
import seccomp  # noqa: E402
from credentials import Authority, Issuer  # noqa: E402
from harness import Client, Server, details, expect  # noqa: E402

Code = grpc.StatusCode


class Bearer(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor, grpc.StreamUnaryClientInterceptor, grpc.StreamStreamClientInterceptor):
    """Adds metadata to every call."""

    def __init__(self, *metadata):
        self.metadata = metadata

    def _call(self, continuation, call, request):
        return continuation(call._replace(metadata=[*(call.metadata or ()), *self.metadata]), request)

    intercept_unary_unary = intercept_unary_stream = intercept_stream_unary = intercept_stream_stream = _call


class Context(harness.Context):
    def __init__(self, build: pathlib.Path, work: pathlib.Path):
        super().__init__(build, work, 0)
        self.tokens: dict[str, str] = {}
        self.entries: list[dict] = []
        self.identities: list[dict] = []
        self.token_file = work / "tokens.json"

    def token(self, identity: str, *scopes: str, **more) -> str:
        """A new token; the file is written at once."""
        token = f"ovp_test-{identity}-{os.urandom(16).hex()}"
        self.entries.append({"identity": identity, "sha256": hashlib.sha256(token.encode()).hexdigest(), "scopes": list(scopes or ("submit", "read")), **more})
        self.write_tokens()
        return token

    def write_tokens(self):
        self.token_file.write_text(json.dumps({"tokens": self.entries, "identities": self.identities}))

    def with_tokens(self, *flags: str) -> Server:
        self.write_tokens()
        return self.server(f"--token-file={self.token_file}", "--reload-seconds=0", *flags)


def as_caller(server: Server, token: str | None = None, tls: grpc.ChannelCredentials | None = None, header: str | None = None) -> Client:
    address = f"localhost:{server.port}"
    channel = grpc.secure_channel(address, tls) if tls else grpc.insecure_channel(address)
    if token is not None or header is not None:
        channel = grpc.intercept_channel(channel, Bearer(("authorization", header if header is not None else f"Bearer {token}")))
    return Client(address, channel)


def trust(ca: Authority, pair: tuple[pathlib.Path, pathlib.Path] | None = None) -> grpc.ChannelCredentials:
    certificate, key = (p.read_bytes() for p in pair) if pair else (None, None)
    return grpc.ssl_channel_credentials(ca.certificate.read_bytes(), key, certificate)


def log_of(server: Server) -> str:
    return server.data.with_suffix(".log").read_text()


def reload(server: Server):
    lines = log_of(server).count("\n")
    server.process.send_signal(signal.SIGHUP)
    for _ in range(500):
        new = log_of(server).splitlines()[lines:]
        if any("again:" in line or "stays as it was" in line for line in new):
            return
        time.sleep(0.01)
    raise AssertionError("SIGHUP was not answered in the log")


def all_calls(client: Client):
    """Each method of our services as a name and a call that would be taken."""
    name = f"operations/{'0' * 32}"
    blob = client.blob(b"x")
    stream = client.pb.CompressStreamRequest(open={"xml_size": 1, "bin_size": 1})
    return {
        "Write": lambda: client.write(client.upload_name(b"x"), b"x"),
        "Read": lambda: client.read(blob),
        "QueryWriteStatus": lambda: client.bytes.QueryWriteStatus(client.bs.QueryWriteStatusRequest(resource_name=client.upload_name(b"x")), timeout=20),
        "ListOperations": lambda: client.operations.ListOperations(client.lro.ListOperationsRequest(), timeout=20),
        "GetOperation": lambda: client.operations.GetOperation(client.lro.GetOperationRequest(name=name), timeout=20),
        "WaitOperation": lambda: client.operations.WaitOperation(client.lro.WaitOperationRequest(name=name), timeout=20),
        "CancelOperation": lambda: client.operations.CancelOperation(client.lro.CancelOperationRequest(name=name), timeout=20),
        "DeleteOperation": lambda: client.operations.DeleteOperation(client.lro.DeleteOperationRequest(name=name), timeout=20),
        "GetCapabilities": lambda: client.compression.GetCapabilities(client.pb.GetCapabilitiesRequest(), timeout=20),
        "FindMissingBlobs": lambda: client.compression.FindMissingBlobs(client.pb.FindMissingBlobsRequest(blobs=[blob]), timeout=20),
        "EstimateCompression": lambda: client.compression.EstimateCompression(client.pb.EstimateCompressionRequest(xml=b"<net/>"), timeout=20),
        "CompressModel": lambda: client.submit(client.pb.ModelBlobs(xml=blob, bin=blob)),
        "WatchOperation": lambda: list(client.compression.WatchOperation(client.pb.WatchOperationRequest(name=name), timeout=20)),
        "CompressStream": lambda: list(client.compression.CompressStream(iter([stream]), timeout=20)),
    }


READ = {"Read", "ListOperations", "GetOperation", "WaitOperation", "WatchOperation"}
SUBMIT = {"Write", "QueryWriteStatus", "CancelOperation", "DeleteOperation", "FindMissingBlobs", "EstimateCompression", "CompressModel", "CompressStream"}


def code_of(call) -> Code:
    try:
        call()
    except grpc.RpcError as error:
        return error.code()
    return Code.OK


def test_every_call_wants_a_token_and_its_scope(c: Context):
    from google.bytestream import bytestream_pb2
    from google.longrunning import operations_pb2
    from ovpress.v1 import compression_pb2

    known = {m.name for service in (bytestream_pb2.DESCRIPTOR, operations_pb2.DESCRIPTOR, compression_pb2.DESCRIPTOR) for s in service.services_by_name.values() for m in s.methods}
    read, submit, both, admin = c.token("reader", "read"), c.token("writer", "submit"), c.token("both"), c.token("root", "admin")
    expired = c.token("old", expires="2020-01-01T00:00:00Z")
    none = c.token("later", "read", expires="2999-01-01T00:00:00+02:00")
    with c.with_tokens() as server:
        refused = {
            "NO_CREDENTIALS": as_caller(server),
            "TOKEN_EXPIRED": as_caller(server, expired),
            **{f"BAD_TOKEN {i}": as_caller(server, header=h) for i, h in enumerate(("", "Bearer", "Bearer wrong", f"Basic {both}", both, f"Bearer {both}x", f"Bearer {both.upper()}"))},
        }
        assert set(all_calls(refused["NO_CREDENTIALS"])) == known, "a method is not tried here"
        for reason, client in refused.items():
            for method, call in all_calls(client).items():
                error = expect(Code.UNAUTHENTICATED, call)
                info = details(error, "ErrorInfo")
                assert info.reason == reason.split()[0] and info.domain == "ovpress", f"{method}: {info}"
        # Two of them: which one counts must not be a matter of taste.
        twice = grpc.intercept_channel(grpc.insecure_channel(f"localhost:{server.port}"), Bearer(("authorization", f"Bearer {both}"), ("authorization", f"Bearer {admin}")))
        expect(Code.UNAUTHENTICATED, all_calls(Client("", twice))["ListOperations"], "more than one")
        for token, may in ((read, READ), (submit, SUBMIT), (both, READ | SUBMIT), (admin, READ | SUBMIT), (none, READ)):
            for method, call in all_calls(as_caller(server, token)).items():
                code = code_of(call)
                allowed = method in may or method == "GetCapabilities"
                assert (code != Code.PERMISSION_DENIED) == allowed and code != Code.UNAUTHENTICATED, f"{method}: {code}"
        error = expect(Code.PERMISSION_DENIED, all_calls(as_caller(server, read))["CompressModel"], "needs the scope submit; reader has read")
        assert details(error, "ErrorInfo").reason == "SCOPE_MISSING"
        assert code_of(all_calls(as_caller(server, header=f"bearer {both}"))["ListOperations"]) == Code.OK, "the scheme has no case"
        log = log_of(server)
    assert "refused google.bytestream.ByteStream/Write from ipv4:127.0.0.1" in log and "(NO_CREDENTIALS)" in log
    assert log.count("refused ") < 14 * len(refused), "whoever knocks all day fills the log"
    for secret in (read, submit, both, admin, expired, none, "wrong"):
        assert secret not in log.replace("wrong ", ""), "a token stands in the log"


def test_two_identities_see_nothing_of_each_other(c: Context):
    alice_token, second, bob_token, admin_token = c.token("alice"), c.token("alice"), c.token("bob"), c.token("root", "admin")
    with c.with_tokens() as server:
        alice, bob, admin = (as_caller(server, t) for t in (alice_token, bob_token, admin_token))
        model = alice.upload_model(c.xml, c.bin)
        blobs = [model.xml, model.bin]
        find = lambda who: list(who.compression.FindMissingBlobs(who.pb.FindMissingBlobsRequest(blobs=blobs)).missing_blobs)  # noqa: E731
        assert find(alice) == [] and len(find(bob)) == 2, "knowing a digest grants the blob"
        for blob in blobs:
            expect(Code.NOT_FOUND, lambda: bob.read(blob))
        # A Write by bob must send every byte: no early OK, no committed size.
        name = bob.upload_name(c.bin)
        expect(Code.NOT_FOUND, lambda: bob.bytes.QueryWriteStatus(bob.bs.QueryWriteStatusRequest(resource_name=name)))
        assert bob.write(name, c.bin[:1000], finish=False).committed_size == 1000
        expect(Code.INVALID_ARGUMENT, lambda: bob.write(bob.upload_name(c.bin), b"", finish=True))
        # Unfinished uploads of the same name are apart, too.
        shared = alice.upload_name(b"a" * 5000, "same-uuid")
        assert alice.write(shared, b"a" * 3000, finish=False).committed_size == 3000
        expect(Code.NOT_FOUND, lambda: bob.bytes.QueryWriteStatus(bob.bs.QueryWriteStatusRequest(resource_name=shared)))
        assert bob.write(shared, b"a" * 10, finish=False).committed_size == 10
        assert alice.bytes.QueryWriteStatus(alice.bs.QueryWriteStatusRequest(resource_name=shared)).committed_size == 3000
        error = expect(Code.FAILED_PRECONDITION, lambda: bob.submit(model))
        assert {v.type for v in details(error, "PreconditionFailure").violations} == {"MISSING"}
        expect(Code.NOT_FOUND, lambda: bob.compression.EstimateCompression(bob.pb.EstimateCompressionRequest(xml_blob=model.xml)))
        job = alice.submit(model, request_id="nightly", labels={"team": "alice"})
        result = alice.result(alice.wait(job))
        for blob in (result.model.xml, result.model.bin, result.report):
            expect(Code.NOT_FOUND, lambda: bob.read(blob))
            assert bob.compression.FindMissingBlobs(bob.pb.FindMissingBlobsRequest(blobs=[blob])).missing_blobs
            assert alice.read(blob)
        calls = {
            "GetOperation": lambda who: who.operations.GetOperation(who.lro.GetOperationRequest(name=job.name)),
            "WaitOperation": lambda who: who.operations.WaitOperation(who.lro.WaitOperationRequest(name=job.name)),
            "WatchOperation": lambda who: list(who.compression.WatchOperation(who.pb.WatchOperationRequest(name=job.name))),
            "CancelOperation": lambda who: who.operations.CancelOperation(who.lro.CancelOperationRequest(name=job.name)),
            "DeleteOperation": lambda who: who.operations.DeleteOperation(who.lro.DeleteOperationRequest(name=job.name)),
        }
        nobody = code_of(lambda: bob.operations.GetOperation(bob.lro.GetOperationRequest(name=f"operations/{'f' * 32}")))
        for call in calls.values():
            assert nobody == Code.NOT_FOUND == expect(Code.NOT_FOUND, lambda: call(bob)).code()
        everything = lambda who, text="": [o.name for o in who.operations.ListOperations(who.lro.ListOperationsRequest(filter=text)).operations]  # noqa: E731
        assert everything(alice) == [job.name] and everything(bob) == [] == everything(bob, "labels.team=alice")
        # The same words of bob's are another job, and no answer out of alice's cache.
        bob_model = bob.upload_model(c.xml, c.bin)
        own = bob.submit(bob_model, request_id="nightly")
        assert own.name != job.name and not bob.result(bob.wait(own)).cache_hit
        assert alice.result(alice.submit(model)).cache_hit, "a second job of alice's is answered at once"
        # Pages: a token of somebody else's list shows nothing of it.
        page = alice.operations.ListOperations(alice.lro.ListOperationsRequest(page_size=1))
        assert page.next_page_token
        try:
            stolen = bob.operations.ListOperations(bob.lro.ListOperationsRequest(page_size=5, page_token=page.next_page_token)).operations
        except grpc.RpcError as error:
            assert error.code() == Code.INVALID_ARGUMENT
        else:
            assert {o.name for o in stolen} <= {own.name}
        # Two tokens of one identity are the same caller; an admin sees all.
        assert len(everything(as_caller(server, second))) == 2
        assert len(everything(admin)) == 3
        owners = sorted(admin.metadata(o).owner for o in admin.operations.ListOperations(admin.lro.ListOperationsRequest()).operations)
        assert owners == ["alice", "alice", "bob"], owners
        assert admin.read(result.model.bin) == alice.read(result.model.bin)
        assert len(find(admin)) == 2, "what an admin may read is not what it has"
        for name in ("GetOperation", "WaitOperation", "WatchOperation", "CancelOperation", "DeleteOperation"):
            calls[name](admin)
        expect(Code.NOT_FOUND, lambda: calls["GetOperation"](alice))
        # After a restart it is as before.
        only_hers = alice.upload(b"only hers")
        server.stop()
        server.start()
        alice, bob = (as_caller(server, t) for t in (alice_token, bob_token))
        assert find(alice) == [] and everything(bob) == [own.name]
        assert alice.read(only_hers) == b"only hers"
        expect(Code.NOT_FOUND, lambda: bob.read(only_hers))


def test_pages_and_health_tell_nothing(c: Context):
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    token = c.token("secret-team")
    with c.with_tokens() as server:
        client = as_caller(server, token)
        job = client.submit(client.upload_model(c.xml, c.bin), labels={"customer": "secret-customer"})
        result = client.result(client.wait(job))
        expect(Code.UNAUTHENTICATED, all_calls(as_caller(server, "wrong"))["ListOperations"])
        text = "".join(server.page(path)[1] for path in ("/metrics", "/healthz", "/readyz"))
        for word in ("secret", job.name.split("/")[1], result.model.bin.sha256, hashlib.sha256(c.xml).hexdigest(), "llama", hashlib.sha256(b"secret-team").hexdigest()):
            assert word not in text, f"{word} is on a public page"
        assert 'ovpress_rpc_handled_total{code="UNAUTHENTICATED",method="google.longrunning.Operations/ListOperations"} 1' in text or 'method="google.longrunning.Operations/ListOperations",code="UNAUTHENTICATED"} 1' in text
        health = health_pb2_grpc.HealthStub(grpc.insecure_channel(f"localhost:{server.port}"))
        for service in ("", "ovpress.v1.WeightCompression"):
            assert health.Check(health_pb2.HealthCheckRequest(service=service)).status == 1
        reflection = lambda s: code_of(lambda: list(grpc.insecure_channel(f"localhost:{s.port}").stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")(iter([b"\x3a\x00"]), timeout=20)))  # noqa: E731
        assert reflection(server) == Code.UNIMPLEMENTED, "reflection answers without a token"
    with c.with_tokens("--reflection=on") as server:
        assert reflection(server) == Code.OK
    with c.server() as server:
        assert reflection(server) == Code.OK, "an open server describes itself"


def test_listening_beyond_loopback_wants_a_reason(c: Context):
    ca = Authority(c.work / "ca", "test")
    certificate, key = ca.server()
    c.token("a")
    tls = [f"--tls-cert={certificate}", f"--tls-key={key}"]
    tokens = [f"--token-file={c.token_file}"]

    def outcome(listen: str, *flags: str) -> str:
        ports = c.work / "ports"
        ports.unlink(missing_ok=True)
        process = subprocess.Popen([c.server_binary, f"--listen={listen}", "--metrics=127.0.0.1:0", f"--data-dir={c.work / 'open'}", f"--port-file={ports}", *flags], stderr=subprocess.PIPE, text=True)
        try:
            while process.poll() is None and not ports.exists():
                time.sleep(0.01)
        finally:
            process.terminate()
        text = process.communicate(timeout=60)[1]
        return "" if ports.exists() else text.splitlines()[-1]

    for listen in ("0.0.0.0:0", "[::]:0"):
        assert "neither TLS" in outcome(listen) and "--insecure-listen" in outcome(listen)
        assert "unencrypted" in outcome(listen, *tokens)
        assert "everybody may use" in outcome(listen, *tls)
    assert outcome("0.0.0.0:0", *tls, *tokens) == ""
    assert outcome("0.0.0.0:0", *tls, f"--tls-client-ca={ca.certificate}") == ""
    assert outcome("0.0.0.0:0", "--insecure-listen") == ""
    assert outcome("127.0.0.1:0") == "" and outcome("localhost:0", *tokens) == ""
    assert "belong together" in outcome("127.0.0.1:0", tls[0])
    assert "needs TLS" in outcome("127.0.0.1:0", f"--tls-client-ca={ca.certificate}")
    assert "is not the key of" in outcome("127.0.0.1:0", tls[0], f"--tls-key={ca.key}")
    assert str(c.work / "none") in outcome("127.0.0.1:0", f"--token-file={c.work / 'none'}")
    assert "issuer and the audience" in outcome("127.0.0.1:0", f"--jwks-file={c.token_file}")
    c.token_file.write_text('{"tokens": [{"identity": "a", "sha256": "x", "scopes": ["read"], "user": 1}]}')
    assert "tokens[0]" in outcome("127.0.0.1:0", *tokens)


def test_tls_and_mutual_tls(c: Context):
    ca, other = Authority(c.work / "ca", "test"), Authority(c.work / "other", "other")
    certificate, key = ca.server()
    tls = [f"--tls-cert={certificate}", f"--tls-key={key}", "--reload-seconds=0"]
    token = c.token("alice")
    capabilities = lambda client: all_calls(client)["GetCapabilities"]()  # noqa: E731
    listed = lambda client: all_calls(client)["ListOperations"]()  # noqa: E731
    with c.server(*tls, f"--token-file={c.token_file}") as server:
        capabilities(as_caller(server, token, trust(ca)))
        expect(Code.UNAUTHENTICATED, lambda: capabilities(as_caller(server, None, trust(ca))))
        expect(Code.UNAVAILABLE, lambda: capabilities(as_caller(server, token, trust(other))))
        expect(Code.UNAVAILABLE, lambda: capabilities(as_caller(server, token)))
        # A certificate that nobody asked for is no identity.
        expect(Code.UNAUTHENTICATED, lambda: capabilities(as_caller(server, None, trust(ca, ca.issue("alice")))))
        shown = subprocess.run(["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", "-tls1_1"], input=b"", capture_output=True)
        assert shown.returncode != 0, "TLS 1.1 is taken"
    c.identities = [{"identity": "cert:ops", "scopes": ["admin"]}, {"identity": "cert:watcher", "scopes": ["read"]}]
    c.write_tokens()
    mutual = [*tls, f"--tls-client-ca={ca.certificate}"]
    with c.server(*mutual, f"--token-file={c.token_file}") as server:
        alice = as_caller(server, None, trust(ca, ca.issue("alice", "DNS:alice.example")))
        bob = as_caller(server, None, trust(ca, ca.issue("bob", "URI:spiffe://example/bob,DNS:alice.example")))
        by_token = as_caller(server, token, trust(ca, ca.issue("proxy")))
        for client in (as_caller(server, token, trust(ca)), as_caller(server, None, trust(ca, other.issue("alice", "DNS:alice.example")))):
            expect(Code.UNAVAILABLE, lambda: capabilities(client))
        job = alice.submit(alice.upload_model(c.xml, c.bin))
        alice.result(alice.wait(job))
        again = as_caller(server, None, trust(ca, ca.issue("renewed", "DNS:alice.example")))
        assert len(listed(again).operations) == 1, "the name is the identity, not the certificate"
        for client in (bob, by_token, as_caller(server, None, trust(ca, ca.issue("alice.example2"))), as_caller(server, None, trust(ca, ca.issue("watcher")))):
            assert len(listed(client).operations) == 0
        assert len(listed(as_caller(server, None, trust(ca, ca.issue("ops")))).operations) == 1, "an admin by its certificate"
        expect(Code.PERMISSION_DENIED, lambda: as_caller(server, None, trust(ca, ca.issue("watcher"))).upload(b"x"))
        expect(Code.UNAUTHENTICATED, lambda: capabilities(as_caller(server, None, trust(ca, ca.issue("with space")))))
        expect(Code.UNAUTHENTICATED, lambda: capabilities(as_caller(server, "wrong", trust(ca, ca.issue("ops")))))
    with c.server(*mutual, "--tls-client-auth=request", f"--token-file={c.token_file}", "--client-cert-scopes=none") as server:
        capabilities(as_caller(server, token, trust(ca)))
        expect(Code.UNAUTHENTICATED, lambda: capabilities(as_caller(server, None, trust(ca))))
        expect(Code.UNAVAILABLE, lambda: capabilities(as_caller(server, token, trust(ca, other.issue("alice")))))
        expect(Code.PERMISSION_DENIED, lambda: listed(as_caller(server, None, trust(ca, ca.issue("alice")))))
        listed(as_caller(server, None, trust(ca, ca.issue("watcher"))))


def test_certificates_rotate_under_running_transfers(c: Context):
    ca, next_ca = Authority(c.work / "ca", "test"), Authority(c.work / "next", "next")
    certificate, key, clients = c.work / "tls.crt", c.work / "tls.key", c.work / "clients.pem"

    def install(pair):
        for source, target in zip(pair, (certificate, key)):
            shutil.copy(source, target)

    first, second, third = ca.server(), ca.server(), next_ca.server()
    install(first)
    shutil.copy(ca.certificate, clients)
    alice = ca.issue("alice")
    flags = [f"--tls-cert={certificate}", f"--tls-key={key}", f"--tls-client-ca={clients}"]
    data = os.urandom(8 << 20)
    with c.server(*flags, "--tls-client-auth=request", "--reload-seconds=0") as server:
        client = as_caller(server, None, trust(ca, alice))
        stored = client.upload(data)
        go_on = threading.Event()

        def slowly():
            name = client.upload_name(data[::-1])
            yield client.bs.WriteRequest(resource_name=name, data=data[::-1][: 1 << 20])
            go_on.wait(60)
            for at in range(1 << 20, len(data), 1 << 20):
                yield client.bs.WriteRequest(write_offset=at, data=data[::-1][at : at + (1 << 20)], finish_write=at + (1 << 20) == len(data))

        upload = client.bytes.Write.future(slowly(), timeout=120)
        download = client.bytes.Read(client.bs.ReadRequest(resource_name=f"blobs/{stored.sha256}/{stored.size_bytes}"), timeout=120)
        received = next(download).data
        assert credentials.served_serial(server.port, ca.certificate) == credentials.serial(first[0])
        install(second)
        assert credentials.served_serial(server.port, ca.certificate) == credentials.serial(first[0]), "nobody asked for it yet"
        reload(server)
        assert credentials.served_serial(server.port, ca.certificate) == credentials.serial(second[0])
        # A pair that does not fit together changes nothing.
        shutil.copy(third[0], certificate)
        reload(server)
        assert "is not the key of" in log_of(server) and "ovpress_access_reloads_total{outcome=\"failed\"} 1" in server.page("/metrics")[1]
        assert credentials.served_serial(server.port, ca.certificate) == credentials.serial(second[0])
        # Another CA for both sides.
        install(third)
        shutil.copy(next_ca.certificate, clients)
        reload(server)
        assert credentials.served_serial(server.port, next_ca.certificate) == credentials.serial(third[0])
        as_caller(server, None, trust(next_ca, next_ca.issue("bob"))).upload(b"new")
        expect(Code.UNAVAILABLE, lambda: as_caller(server, None, trust(ca, alice)).upload(b"old"))
        stale = grpc.ssl_channel_credentials(next_ca.certificate.read_bytes(), alice[1].read_bytes(), alice[0].read_bytes())
        expect(Code.UNAVAILABLE, lambda: as_caller(server, None, stale).upload(b"old"))
        # What ran all the time never noticed.
        go_on.set()
        assert upload.result().committed_size == len(data)
        for message in download:
            received += message.data
        assert received == data
        end = re.search(r"(?m)^ovpress_tls_certificate_not_after_seconds (\S+)", server.page("/metrics")[1])
        assert abs(float(end[1]) - time.time() - 30 * 86400) < 86400
    # As a kubelet does it: files behind a link that is exchanged; nobody signals.
    for name, pair in (("v1", first), ("v2", second)):
        (c.work / name).mkdir()
        shutil.copy(pair[0], c.work / name / "tls.crt")
        shutil.copy(pair[1], c.work / name / "tls.key")
    link = c.work / "mounted"
    link.symlink_to("v1")
    with c.server(f"--tls-cert={link}/tls.crt", f"--tls-key={link}/tls.key", "--reload-seconds=0.1") as server:
        assert credentials.served_serial(server.port, ca.certificate) == credentials.serial(first[0])
        (c.work / "new").symlink_to("v2")
        (c.work / "new").rename(link)
        for _ in range(100):
            if credentials.served_serial(server.port, ca.certificate) == credentials.serial(second[0]):
                break
            time.sleep(0.05)
        else:
            raise AssertionError("the new files were not noticed")


def test_tokens_rotate(c: Context):
    old = c.token("alice")
    with c.with_tokens() as server:
        client = as_caller(server, old)
        model = client.upload_model(c.xml, c.bin)
        job = client.submit(model)
        client.wait(job)
        new = c.token("alice")
        expect(Code.UNAUTHENTICATED, lambda: all_calls(as_caller(server, new))["ListOperations"]())
        reload(server)
        for token in (old, new):
            assert len(all_calls(as_caller(server, token))["ListOperations"]().operations) == 1
        c.entries = c.entries[1:]
        c.write_tokens()
        reload(server)
        expect(Code.UNAUTHENTICATED, lambda: all_calls(client)["ListOperations"]())
        # A file that is not fine leaves the tokens of before.
        c.token_file.write_text('{"tokens": [')
        reload(server)
        assert str(c.token_file) in log_of(server)
        assert len(all_calls(as_caller(server, new))["ListOperations"]().operations) == 1
        c.token_file.unlink()
        reload(server)
        assert len(all_calls(as_caller(server, new))["ListOperations"]().operations) == 1
    with c.server(f"--token-file={c.token_file}", "--reload-seconds=0.1") if (c.write_tokens() or True) else None as server:
        newest = c.token("alice")
        for _ in range(100):
            if code_of(all_calls(as_caller(server, newest))["ListOperations"]) == Code.OK:
                break
            time.sleep(0.05)
        else:
            raise AssertionError("the new file was not noticed")


def test_jwts(c: Context):
    rsa, ec, stranger = Issuer(c.work, "rsa", "r1"), Issuer(c.work, "ec", "e1"), Issuer(c.work, "ec", "e2")
    jwks = c.work / "jwks.json"
    jwks.write_text(json.dumps({"keys": [rsa.jwk(), ec.jwk()]}))
    static = c.token("alice")
    flags = [f"--jwks-file={jwks}", "--jwt-issuer=https://id.example", "--jwt-audience=ovpress", "--jwt-leeway=5"]
    # A Kubernetes service account's token has no scopes of its own.
    c.identities = [{"identity": "jwt:system:serviceaccount:mlops:nightly", "scopes": ["read"]}]
    with c.with_tokens(*flags) as server:
        listed = lambda token: all_calls(as_caller(server, token))["ListOperations"]()  # noqa: E731
        alice = as_caller(server, rsa.jwt(sub="alice"))
        job = alice.submit(alice.upload_model(c.xml, c.bin))
        alice.result(alice.wait(job))
        assert len(listed(ec.jwt(sub="alice")).operations) == 1, "sub is the identity, whichever key signs"
        assert len(listed(ec.jwt(sub="bob")).operations) == 0
        assert len(listed(static).operations) == 0, "a token's name is not a subject's"
        assert len(listed(ec.jwt(sub="root", scope="admin")).operations) == 1
        expect(Code.PERMISSION_DENIED, lambda: listed(ec.jwt(sub="alice", scope="openid")), "has none")
        account = ec.jwt(sub="system:serviceaccount:mlops:nightly", scope="")
        listed(account)
        expect(Code.PERMISSION_DENIED, lambda: as_caller(server, account).upload(b"x"))
        now = int(time.time())
        head, claims, signature = ec.jwt(sub="alice").split(".")
        none = credentials.b64(b'{"alg":"none","kid":"e1"}')
        bad = {
            "expired": ec.jwt(sub="alice", exp=now - 60),
            "future": ec.jwt(sub="alice", nbf=now + 600),
            "issuer": ec.jwt(sub="alice", iss="https://evil.example"),
            "audience": ec.jwt(sub="alice", aud="other"),
            "no subject": ec.jwt(),
            "unknown key": stranger.jwt(sub="alice"),
            "stolen kid": stranger.jwt({"kid": "e1"}, sub="alice"),
            "alg none": f"{none}.{claims}.",
            "HS256": rsa.jwt({"alg": "HS256"}, sub="alice"),
            "alg of another key": rsa.jwt({"kid": "e1"}, sub="alice"),
            "claims exchanged": f"{head}.{credentials.b64(json.dumps({'sub': 'root', 'scope': 'admin'}).encode())}.{signature}",
            "oversize": ec.jwt(sub="alice", filler="x" * 6000),
        }
        for what, token in bad.items():
            code = code_of(lambda: listed(token))
            # gRPC itself ends what is larger than its metadata may be.
            assert code == Code.UNAUTHENTICATED or (what == "oversize" and code == Code.RESOURCE_EXHAUSTED), f"{what}: {code}"
        # The key is withdrawn.
        token = ec.jwt(sub="alice")
        listed(token)
        jwks.write_text(json.dumps({"keys": [rsa.jwk()]}))
        reload(server)
        expect(Code.UNAUTHENTICATED, lambda: listed(token), "kid")
        for secret in (*bad.values(), token):
            assert secret not in log_of(server) and secret.split(".")[1] not in log_of(server)


def test_quotas_of_identities(c: Context):
    quotas = c.work / "quotas.json"
    quotas.write_text(json.dumps({"identities": {
        "small": {"max_bytes": "1MiB", "max_requests_per_second": 1000},
        "slow": {"max_requests_per_second": 2},
        "queue": {"max_queued": 1, "max_running": 1},
        "still": {"max_transfers": 1, "max_watchers": 1, "max_uploads": 1},
    }}))
    tokens = {name: c.token(name) for name in ("small", "slow", "queue", "still", "other")}
    path, xml, data = c.large_model_files()
    with c.with_tokens(f"--quota-file={quotas}", "--max-running=4", "--threads=1") as server:
        who = {name: as_caller(server, token) for name, token in tokens.items()}

        def limit(call, name: str):
            error = expect(Code.RESOURCE_EXHAUSTED, call)
            info = details(error, "ErrorInfo")
            assert info.reason == f"LIMIT_{name.upper()}" and info.metadata["limit"] == name, info
            return details(error, "RetryInfo").retry_delay.ToTimedelta().total_seconds(), details(error, "QuotaFailure").violations[0].subject

        # Bytes: half a share, then more than is left; others are not concerned.
        who["small"].upload(os.urandom(600_000))
        wait, subject = limit(lambda: who["small"].upload(os.urandom(600_000)), "max_owner_bytes")
        assert wait > 0 and subject == "client:small"
        expect(Code.INVALID_ARGUMENT, lambda: who["small"].upload(os.urandom(2 << 20)), "limit max_owner_bytes")
        who["other"].upload(os.urandom(2 << 20))
        # Requests: two a second, four at once; whoever waits as told is served.
        call = all_calls(who["slow"])["GetCapabilities"]
        codes = [code_of(call) for _ in range(8)]
        assert codes.count(Code.OK) in (4, 5) and codes[:4] == [Code.OK] * 4, codes
        wait, subject = limit(call, "max_requests_per_second")
        assert 0 < wait <= 0.5 and subject == "client:slow"
        time.sleep(wait + 0.05)
        call()
        assert code_of(all_calls(who["other"])["GetCapabilities"]) == Code.OK
        # Jobs: one runs, one waits, the next is refused; another client's is taken.
        models = {name: who[name].upload_model(xml, data) for name in ("queue", "other")}
        # A codebook of 256 values takes a second or more; other modes end before anybody sees them run.
        slow = {"mode": "codebook", "codebook": json.dumps([(i - 127) / 100 for i in range(256)]).encode(), "group_size": 64}
        jobs = [who["queue"].submit(models["queue"], options=dict(slow))]
        while who["queue"].metadata(who["queue"].operations.GetOperation(who["queue"].lro.GetOperationRequest(name=jobs[0].name))).state != 2:
            time.sleep(0.02)
        jobs.append(who["queue"].submit(models["queue"], ignore_result_cache=True, options=dict(slow)))
        limit(lambda: who["queue"].submit(models["queue"], ignore_result_cache=True, options=dict(slow)), "max_queued_per_owner")
        other = who["other"].submit(models["other"])
        # Its second job waits although places are free; the other's runs beside.
        states = lambda client, job: client.metadata(client.operations.GetOperation(client.lro.GetOperationRequest(name=job.name))).state  # noqa: E731
        who["other"].result(who["other"].wait(other, 120))
        if states(who["queue"], jobs[0]) == 2:
            assert states(who["queue"], jobs[1]) == 1, "two at a time"
        for job in jobs:
            who["queue"].operations.CancelOperation(who["queue"].lro.CancelOperationRequest(name=job.name))
        # Transfers and watchers.
        still = who["still"]
        hold = threading.Event()

        def slowly():
            yield still.bs.WriteRequest(resource_name=still.upload_name(b"12"), data=b"1")
            hold.wait(60)

        open_one = still.bytes.Write.future(slowly(), timeout=90)
        while "ovpress_transfers_active 1" not in server.page("/metrics")[1]:
            time.sleep(0.02)
        limit(lambda: still.upload(b"34"), "max_transfers_per_owner")
        who["other"].upload(b"56")
        hold.set()
        open_one.result()
        limit(lambda: still.write(still.upload_name(b"78"), b"7", finish=False), "max_owner_uploads")
        # One place to wait in, taken by a Wait for a job that waits itself.
        queue = who["queue"]
        quotas.write_text(json.dumps({"identities": {"queue": {"max_watchers": 1, "max_queued": 5, "max_running": 1}}}))
        reload(server)
        running = [queue.submit(models["queue"], ignore_result_cache=True, options=dict(slow)) for _ in range(3)]
        waiting = queue.operations.WaitOperation.future(queue.lro.WaitOperationRequest(name=running[2].name, timeout={"seconds": 60}), timeout=90)
        time.sleep(0.3)
        limit(lambda: list(queue.compression.WatchOperation(queue.pb.WatchOperationRequest(name=running[2].name), timeout=20)), "max_watchers_per_owner")
        limit(lambda: queue.operations.WaitOperation(queue.lro.WaitOperationRequest(name=running[2].name, timeout={"seconds": 1}), timeout=20), "max_watchers_per_owner")
        for job in running:
            queue.operations.CancelOperation(queue.lro.CancelOperationRequest(name=job.name))
        waiting.result()
        list(queue.compression.WatchOperation(queue.pb.WatchOperationRequest(name=running[2].name), timeout=20))
        rejected = server.page("/metrics")[1]
        for name in ("max_requests_per_second", "max_watchers_per_owner", "max_transfers_per_owner"):
            assert f'ovpress_admission_rejected_total{{reason="{name}"}}' in rejected, name


def http2_frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def http2_headers(*headers: tuple[str, bytes]) -> bytes:
    """HPACK without tables: each a literal that is never indexed."""
    def text(value: bytes) -> bytes:
        length, code = len(value), b""
        if length < 127:
            return bytes([length]) + value
        length -= 127
        while length >= 128:
            code += bytes([length % 128 + 128])
            length //= 128
        return b"\x7f" + code + bytes([length]) + value

    return b"".join(b"\x10" + text(name.encode()) + text(value) for name, value in headers)


HEADERS, RST_STREAM, SETTINGS, PING = 1, 3, 4, 6
END_STREAM, END_HEADERS = 1, 4


def flood(port: int, frames, seconds: float = 20) -> int:
    """Sends until all is sent, the server hangs up, or it takes nothing more; reads
    and forgets what comes. Returns the bytes sent."""
    sent = 0
    with socket.create_connection(("127.0.0.1", port), timeout=5) as s:
        s.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + http2_frame(SETTINGS, 0, 0))

        def drain():
            with contextlib.suppress(OSError):
                while s.recv(1 << 16):
                    pass

        reader = threading.Thread(target=drain, daemon=True)
        reader.start()
        with contextlib.suppress(OSError):
            end = time.monotonic() + seconds
            for piece in frames:
                s.sendall(piece)
                sent += len(piece)
                if time.monotonic() > end:
                    break
        with contextlib.suppress(OSError):
            s.shutdown(socket.SHUT_RDWR)
        reader.join(10)
    return sent


def test_floods_leave_nothing_behind(c: Context):
    token, bob = c.token("alice"), c.token("bob")

    def opened(path: bytes, *more: tuple[str, bytes]) -> bytes:
        return http2_headers((":method", b"POST"), (":scheme", b"http"), (":path", path), (":authority", b"x"), ("content-type", b"application/grpc"), ("te", b"trailers"), *more)

    def streams(count: int, header: bytes, flags: int = END_HEADERS, after=lambda stream: b""):
        for stream in range(1, 2 * count, 2):
            yield http2_frame(HEADERS, flags, stream, header) + after(stream)

    bearer = ("authorization", f"Bearer {token}".encode())
    write, list_jobs, stream = b"/google.bytestream.ByteStream/Write", b"/google.longrunning.Operations/ListOperations", b"/ovpress.v1.WeightCompression/CompressStream"
    reset = lambda n: http2_frame(RST_STREAM, 0, n, b"\0\0\0\x08")  # noqa: E731
    attacks = {
        "half-open, unknown": lambda: streams(5000, opened(write)),
        "half-open, known": lambda: streams(5000, opened(stream, bearer)),
        "rapid reset, unknown": lambda: streams(20000, opened(list_jobs), after=reset),
        "rapid reset, known": lambda: streams(20000, opened(write, bearer), after=reset),
        "settings": lambda: (http2_frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65535 + i % 9)) * 50 for i in range(400)),
        "pings": lambda: (http2_frame(PING, 0, 0, struct.pack(">Q", i)) * 50 for i in range(400)),
        "metadata of a megabyte": lambda: streams(50, opened(list_jobs, *((f"x-{i}", b"y" * 1000) for i in range(15)), bearer)),
        "odd bytes in the token": lambda: (http2_frame(HEADERS, END_HEADERS | END_STREAM, 2 * i + 1, opened(list_jobs, ("authorization", b"Bearer " + bytes([i % 256]) * 40))) for i in range(1, 256)),
    }
    with c.with_tokens() as server:
        client = as_caller(server, bob)
        descriptors = lambda: len(os.listdir(f"/proc/{server.process.pid}/fd"))  # noqa: E731
        all_calls(client)["GetCapabilities"]()
        resident = lambda: int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{server.process.pid}/status").read_text())[1]) / 1024  # noqa: E731
        at_rest, resident_at_rest = descriptors(), resident()
        for _ in range(2):
            for name, frames in attacks.items():
                begin = time.monotonic()
                flood(int(server.port), frames())
                assert server.process.poll() is None, f"{name} ended the server: {log_of(server)[-500:]}"
                all_calls(client)["GetCapabilities"]()  # whoever behaves is served
                assert time.monotonic() - begin < 40, name
            harness.wait_until(lambda: "ovpress_transfers_active 0" in server.page("/metrics")[1])
            harness.wait_until(lambda: descriptors() <= at_rest + 2)
            # What the heap may keep (core/base/heap.h) and a little.
            harness.wait_until(lambda: resident() < resident_at_rest + 300)
        for name in ("uploads/\0/blobs/a/1", "uploads/" + "%2e%2e/" * 50 + f"blobs/{'a' * 64}/1", f"uploads/{'u' * 100000}/blobs/{'a' * 64}/1", f"uploads/u/blobs/{'a' * 64}/{2**63}", f"blobs/{'a' * 64}/1/../../x"):
            for call in (lambda: client.write(name, b"x"), lambda: list(client.bytes.Read(client.bs.ReadRequest(resource_name=name), timeout=20)), lambda: client.bytes.QueryWriteStatus(client.bs.QueryWriteStatusRequest(resource_name=name), timeout=20)):
                assert code_of(call) in (Code.INVALID_ARGUMENT, Code.NOT_FOUND), name
        for name in ("operations/../jobs.sqlite", "operations/" + "a" * 100000, "operations/%00", "operations/' OR 1=1 --", ""):
            for method, kind in (("GetOperation", "GetOperationRequest"), ("CancelOperation", "CancelOperationRequest"), ("DeleteOperation", "DeleteOperationRequest")):
                assert code_of(lambda: getattr(client.operations, method)(getattr(client.lro, kind)(name=name), timeout=20)) in (Code.INVALID_ARGUMENT, Code.NOT_FOUND), (method, name)
        model = client.upload_model(c.xml, c.bin)
        for labels in ({f"k{i}": "v" for i in range(17)}, {"k": "v" * 300}, {"K": "v"}, {"": "v"}):
            assert code_of(lambda: client.submit(model, labels=labels)) == Code.INVALID_ARGUMENT, labels
        assert server.stop() == 0


def test_token_command(c: Context):
    file = c.work / "new.json"

    def token(*arguments: str, stdin: str = ""):
        return subprocess.run([c.server_binary, "token", *map(str, arguments)], input=stdin, capture_output=True, text=True)

    made = token("new", "--file", file, "--identity", "team-a", "--scopes", "submit,read", "--expires-days", 1, "--comment", "ci")
    assert made.returncode == 0, made.stderr
    secret = made.stdout.strip()
    assert re.fullmatch(r"ovp_[A-Za-z0-9_-]{43}", secret) and secret not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    # Many at once: none is lost, the file is always whole.
    with_all = [subprocess.Popen([c.server_binary, "token", "new", "--file", file, "--identity", f"t{i}"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) for i in range(8)]
    secrets = [p.communicate()[0].strip() for p in with_all]
    assert len(json.loads(file.read_text())["tokens"]) == 9 and len(set(secrets)) == 8
    hashed = token("hash", "--identity", "vault", stdin="from-a-vault-0123456789abcdef\n")
    assert hashed.returncode == 0
    content = json.loads(file.read_text())
    content["tokens"].append(json.loads(hashed.stdout))
    file.write_text(json.dumps(content))
    with c.server(f"--token-file={file}") as server:
        for good in (secret, *secrets, "from-a-vault-0123456789abcdef"):
            all_calls(as_caller(server, good))["ListOperations"]()
    for arguments, text in (
        (("new", "--file", file, "--identity", "a b"), "identity 'a b'"),
        (("new", "--file", file, "--identity", "a", "--scopes", "write"), "write"),
        (("new", "--file", c.work / "no/folder/x", "--identity", "a"), "no/folder"),
        (("hash", "--identity", "a"), "at least 22 random ones"),
        (("new", "--identity", "a"), "--file is required"),
    ):
        done = token(*arguments, stdin="short\n")
        assert done.returncode != 0 and text in done.stderr, (arguments, done.stderr)
    before = file.read_text()
    file.write_text("{")
    assert token("new", "--file", file, "--identity", "a").returncode == 1 and file.read_text() == "{", "a file that is not understood is not replaced"
    file.write_text(before)


def test_our_command_line(c: Context):
    ca, other = Authority(c.work / "ca", "test"), Authority(c.work / "other", "other")
    certificate, key = ca.server()
    secret = c.work / "token"
    secret.write_text(c.token("alice") + "\n")
    model = ROOT / "tests/data/models/llama/openvino_model.xml"
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OVPRESS_")}

    def ovpress(*arguments, **environment):
        return subprocess.run([c.ovpress, *map(str, arguments)], capture_output=True, text=True, env={**clean, **environment})

    with c.server(f"--tls-cert={certificate}", f"--tls-key={key}", f"--tls-client-ca={ca.certificate}", "--tls-client-auth=request", f"--token-file={c.token_file}") as server:
        address = ["--server", f"localhost:{server.port}", "--retry-seconds", "0"]
        tls = ["--tls-ca", ca.certificate]
        out = c.work / "remote.xml"
        done = ovpress("compress", model, "-o", out, *address, *tls, "--token-file", secret)
        assert done.returncode == 0, done.stderr
        assert (out.read_bytes(), out.with_suffix(".bin").read_bytes()) == c.local(model), "another result than the local run's"
        listed = ovpress("list", *address, OVPRESS_TOKEN_FILE=str(secret), OVPRESS_TLS_CA=str(ca.certificate))
        assert listed.returncode == 0 and "SUCCEEDED" in listed.stdout, (listed.stdout, listed.stderr)
        pair = ca.issue("bob")
        empty = ovpress("list", *address, *tls, "--tls-cert", pair[0], "--tls-key", pair[1])
        assert empty.returncode == 0 and empty.stdout == "", empty.stderr
        assert ovpress("health", *address, *tls).stdout == "SERVING\n", "health needs no token"
        for arguments, text in (
            ((*tls,), "wants to know who calls"),
            ((*tls, "--token-file", c.work / "tokens.json"), "printable ASCII"),
            ((*tls, "--token-file", c.work / "none"), str(c.work / "none")),
            (("--tls-ca", other.certificate, "--token-file", secret), ""),
            ((*tls, "--tls-cert", pair[0]), "belong together"),
            (("--tls-ca", secret), "no PEM in it"),
            (("--tls", "--token-file", secret), ""),
            ((*tls, "--tls-server-name", "other.example", "--token-file", secret), ""),
        ):
            done = ovpress("list", *address, *arguments)
            assert done.returncode == 1 and text in done.stderr and done.stderr.count("\n") == 1, (arguments, done.stderr)
        named = ovpress("list", "--server", f"127.0.0.1:{server.port}", *tls, "--tls-server-name", "localhost", "--token-file", secret)
        assert named.returncode == 0, named.stderr
    # A token never travels in the clear beyond this machine, unless one insists.
    begin = time.monotonic()
    done = ovpress("list", "--server", "192.0.2.1:8470", "--token-file", secret)
    assert done.returncode == 1 and "would travel unencrypted" in done.stderr and time.monotonic() - begin < 5
    done = ovpress("list", "--server", "192.0.2.1:8470", OVPRESS_TOKEN_FILE=str(secret))
    assert "would travel unencrypted" in done.stderr
    with c.with_tokens() as server:
        done = ovpress("list", "--server", f"127.0.0.1:{server.port}", "--token-file", secret, http_proxy="http://127.0.0.1:1")
        assert done.returncode == 0, done.stderr


def test_our_python_client(c: Context):
    import ovpress_client

    ca, other = Authority(c.work / "ca", "test"), Authority(c.work / "other", "other")
    certificate, key = ca.server()
    secret = c.work / "token"
    secret.write_text(c.token("alice") + "\n")
    model = ROOT / "tests/data/models/llama/openvino_model.xml"
    with c.server(f"--tls-cert={certificate}", f"--tls-key={key}", f"--tls-client-ca={ca.certificate}", "--tls-client-auth=request", f"--token-file={c.token_file}", "--reload-seconds=0") as server:
        address = f"localhost:{server.port}"
        out = c.work / "python.xml"
        with ovpress_client.Client(address, tls_ca=ca.certificate, token_file=secret) as client:
            client.compress(model, out)
            assert (out.read_bytes(), out.with_suffix(".bin").read_bytes()) == c.local(model)
            # The token changes on both sides; the client goes on.
            old = secret.read_text()
            secret.write_text(c.token("alice"))
            reload(server)
            assert len(list(client.list())) == 1
        c.entries = c.entries[1:]
        c.write_tokens()
        reload(server)
        for arguments in ({"tls_ca": ca.certificate, "token": old.strip()}, {"tls_ca": ca.certificate}):
            with ovpress_client.Client(address, retry_timeout=0, **arguments) as client:
                try:
                    list(client.list())
                except ovpress_client.OvpressError as error:
                    assert "UNAUTHENTICATED" in f"{getattr(error, 'code', '')}{error!r}" or "who calls" in str(error) or "not known" in str(error), repr(error)
                else:
                    raise AssertionError(f"{arguments}: taken")
        pair = ca.issue("bob")
        with ovpress_client.Client(address, tls_ca=ca.certificate, tls_cert=pair[0], tls_key=pair[1]) as client:
            assert list(client.list()) == []
        with ovpress_client.Client(address, tls_ca=other.certificate, token_file=secret, retry_timeout=0) as client:
            try:
                list(client.list())
            except ovpress_client.OvpressError:
                pass
            else:
                raise AssertionError("a server of an unknown CA was trusted")


def test_confined_as_in_the_container(c: Context):
    """Another user, no capabilities, no new privileges, everything but the data
    folder read-only, and the shipped seccomp profile: all work still works."""
    profile = ROOT / "deploy/seccomp/ovpress.json"
    confine = [sys.executable, str(ROOT / "tests/access/seccomp.py"), "--profile", str(profile)]
    if os.geteuid() == 0:
        confine += ["--user", "65532"]
        os.chmod(c.work, 0o755)
        for parent in (c.work.parent,):
            os.chmod(parent, 0o755)
    data = c.work / "confined"
    data.mkdir()
    shutil.copy(c.server_binary, c.work / "ovpress-server")
    shutil.copy(c.ovpress, c.work / "ovpress")
    if os.geteuid() == 0:
        os.chown(data, 65532, 65532)
    ca = Authority(c.work / "ca", "test")
    certificate, key = ca.server()
    os.chmod(key, 0o644)
    token = c.token("alice")
    os.chmod(c.token_file, 0o644)
    command = [*confine, "--read-only-but", str(data), "--", str(c.work / "ovpress-server"), "--listen=127.0.0.1:0", "--metrics=127.0.0.1:0", f"--data-dir={data / 'store'}", f"--port-file={data / 'ports'}", f"--tls-cert={certificate}", f"--tls-key={key}", f"--tls-client-ca={ca.certificate}", "--tls-client-auth=request", f"--token-file={c.token_file}", "--log-format=json"]
    log = (c.work / "confined.log").open("wb")
    process = subprocess.Popen(command, stderr=log)
    try:
        for _ in range(1000):
            if (data / "ports").exists():
                break
            assert process.poll() is None, (c.work / "confined.log").read_text()
            time.sleep(0.01)
        status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
        assert "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status and "CapEff:\t0000000000000000" in status, status
        if os.geteuid() == 0:
            assert "Uid:\t65532\t65532\t65532\t65532" in status
        server = argparse.Namespace(port=(data / "ports").read_text().split()[0])
        http_port = (data / "ports").read_text().split()[1]
        client = as_caller(server, token, trust(ca))
        model = client.upload_model(c.xml, c.bin)
        for options in ({"mode": "int8_asym"}, {"mode": "int4_sym", "group_size": 32, "ratio": 0.5}):
            result = client.result(client.wait(client.submit(model, options=options)))
            assert client.read(result.model.bin)
        path, xml, large = c.large_model_files()
        job = client.submit(client.upload_model(xml, large))
        client.operations.CancelOperation(client.lro.CancelOperationRequest(name=job.name))
        opened = client.pb.CompressStreamRequest(open={"xml_size": len(c.xml), "bin_size": len(c.bin), "options": {"mode": "int8_asym"}})

        def messages():
            yield opened
            yield client.pb.CompressStreamRequest(xml_chunk=c.xml)
            for at in range(0, len(c.bin), 1 << 20):
                yield client.pb.CompressStreamRequest(bin_chunk=c.bin[at : at + (1 << 20)])

        assert list(client.compression.CompressStream(messages(), timeout=60))[-1].HasField("result")
        import urllib.request

        assert b"ovpress_" in urllib.request.urlopen(f"http://127.0.0.1:{http_port}/metrics", timeout=10).read()
        process.send_signal(signal.SIGHUP)
        as_caller(server, token, trust(ca)).upload(b"after SIGHUP")
        # Again from what is on the disk; then the command line inside the same box.
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0, (c.work / "confined.log").read_text()[-2000:]
        assert not list(data.glob("core*")) and "operation not permitted" not in (c.work / "confined.log").read_text().lower()
        (data / "ports").unlink()
        process = subprocess.Popen(command, stderr=log)
        while not (data / "ports").exists():
            assert process.poll() is None, (c.work / "confined.log").read_text()
            time.sleep(0.01)
        server.port = (data / "ports").read_text().split()[0]
        assert as_caller(server, token, trust(ca)).read(result.model.bin)
        secret = c.work / "token"
        secret.write_text(token)
        os.chmod(secret, 0o644)
        out = data / "out.xml"
        inside = subprocess.run([*confine, "--read-only-but", str(data), "--", str(c.work / "ovpress"), "compress", str(harness.MODEL), "-o", str(out), "--server", f"localhost:{server.port}", "--tls-ca", str(ca.certificate), "--token-file", str(secret)], capture_output=True, text=True)
        assert inside.returncode == 0, inside.stderr
        local = subprocess.run([*confine, "--read-only-but", str(data), "--", str(c.work / "ovpress"), "compress", str(harness.MODEL), "-o", str(data / "local.xml"), "--quiet"], capture_output=True, text=True)
        assert local.returncode == 0, local.stderr
        assert out.with_suffix(".bin").read_bytes() == (data / "local.bin").read_bytes()
    finally:
        process.kill()
        process.wait()
        log.close()


def test_the_profile_denies(c: Context):
    """What a taken-over process would want next, tried under the profile."""
    profile = ROOT / "deploy/seccomp/ovpress.json"
    assert seccomp.program_of(json.loads(profile.read_text())), "it does not compile"
    script = c.work / "attack.py"
    script.write_text("""
import ctypes, errno, json, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(number, *[ctypes.c_long(a) for a in arguments])
    return 0 if result >= 0 else ctypes.get_errno()
wanted = json.loads(sys.argv[1])
print(json.dumps({name: call(number, *arguments) for name, (number, arguments) in wanted.items()}))
""")
    numbers = seccomp.numbers()
    attacks = {
        "ptrace": [0, 0, 0, 0], "process_vm_readv": [1, 0, 0, 0, 0, 0], "mount": [0, 0, 0, 0, 0], "umount2": [0, 0], "pivot_root": [0, 0], "chroot": [0],
        "unshare": [0x10000000], "setns": [0, 0], "bpf": [0, 0, 0], "perf_event_open": [0, 0, 0, 0, 0], "keyctl": [0], "add_key": [0, 0, 0, 0, 0], "request_key": [0, 0, 0, 0],
        "init_module": [0, 0, 0], "finit_module": [0, 0, 0], "kexec_load": [0, 0, 0, 0], "reboot": [0, 0, 0, 0], "swapon": [0, 0], "userfaultfd": [0], "io_uring_setup": [1, 0],
        "open_by_handle_at": [0, 0, 0], "settimeofday": [0, 0], "iopl": [3], "personality": [0xffffffff], "socket": [16, 3, 0], "clone": [0x10000000, 0, 0, 0, 0], "fanotify_init": [0, 0], "acct": [0], "quotactl": [0, 0, 0, 0],
    }
    raw = {"socket-raw": ("socket", [2, 3, 1]), "socket-packet": ("socket", [17, 3, 0]), "socket-vsock": ("socket", [40, 1, 0])}
    wanted = {name: (numbers[name], arguments) for name, arguments in attacks.items()} | {k: (numbers[n], a) for k, (n, a) in raw.items()}
    wanted["clone3"] = (numbers["clone3"], [0, 0])
    wanted["getpid"] = (numbers["getpid"], [])
    done = subprocess.run([sys.executable, str(ROOT / "tests/access/seccomp.py"), "--profile", str(profile), "--", sys.executable, str(script), json.dumps(wanted)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome.pop("getpid") == 0 and outcome.pop("clone3") == 38, "glibc must see clone3 as unknown, and use clone"
    for name, error in outcome.items():
        assert error == 1, f"{name}: {os.strerror(error) if error else 'allowed'}"
    # The same calls are not refused for these reasons without it.
    free = subprocess.run([sys.executable, str(script), json.dumps({"getpid": wanted["getpid"], "clone3": wanted["clone3"], "personality": wanted["personality"]})], capture_output=True, text=True)
    assert json.loads(free.stdout)["clone3"] != 38 and json.loads(free.stdout)["personality"] == 0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    passed = failed = 0
    with tempfile.TemporaryDirectory(prefix="ovpress-access-") as folder:
        work = pathlib.Path(folder)
        (work / "stubs").mkdir()
        harness.generate_stubs(work / "stubs")
        for name, test in list(globals().items()):
            if not name.startswith("test_") or (arguments.names and name not in arguments.names):
                continue
            begin = time.monotonic()
            try:
                test(Context(arguments.build.resolve(), pathlib.Path(tempfile.mkdtemp(dir=work))))
                passed += 1
                print(f"ok   {name} ({time.monotonic() - begin:.1f} s)", flush=True)
            except Exception:
                failed += 1
                print(f"FAIL {name}\n{traceback.format_exc()}", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
