#!/usr/bin/env python3
"""The real server on a real object store (SeaweedFS) and PostgreSQL, called by
the real command line: what goes in, what comes out, what it costs.

  object_store.py --build build/ci [--megabytes N]   prints "N passed, N failed"

With --measure it compresses one model over the local store and over the object
store in turns and prints the table of docs/scaling.md.
"""

import argparse
import datetime
import hashlib
import hmac
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
import time
import traceback
import urllib.error
import urllib.request

import proxies

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / "tests/data/models/llama/openvino_model.xml"
KEY, SECRET = "ovpress-test", "not/a+secret="


def free_block():
    """Ten ports in a row, free, as are those 10000 above (weed's gRPC)."""
    for _ in range(200):
        base = 10_000 + random.randrange(1000) * 10
        try:
            for port in [*range(base, base + 10), *range(base + 10_000, base + 10_010)]:
                with socket.socket() as s:
                    s.bind(("127.0.0.1", port))
            return base
        except OSError:
            continue
    raise AssertionError("no ten free ports")


class Seaweed:
    def __init__(self, folder):
        folder.mkdir()
        port = free_block()
        self.endpoint = f"http://127.0.0.1:{port}"
        (folder / "s3.json").write_text(
            '{"identities":[{"name":"test","credentials":[{"accessKey":"%s","secretKey":"%s"}],'
            '"actions":["Admin","Read","Write","List","Tagging"]}]}' % (KEY, SECRET))
        self.folder, self.port = folder, port
        self.start()

    def start(self):
        folder, port = self.folder, self.port
        weed = os.environ.get("OVPRESS_WEED", ROOT / ".venv/bin/weed")
        with open(folder / "log", "a") as log:
            self.process = subprocess.Popen(
                [weed, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", f"-s3.port={port}",
                 f"-s3.config={folder}/s3.json", "-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.port.grpc={port + 5}", "-filer",
                 f"-filer.port={port + 1}", f"-master.port={port + 2}", f"-volume.port={port + 3}", "-volume.max=400",
                 "-master.volumeSizeLimitMB=64", "-master.electionTimeout=1s", "-master.telemetry=false"],
                stdout=log, stderr=log)
        for _ in range(600):
            try:
                for bucket in ("models", "store"):
                    try:
                        self.call("PUT", f"/{bucket}")
                    except urllib.error.HTTPError as error:
                        if error.code != 409:  # there since an earlier start
                            raise
                self.call("PUT", "/models/probe", b"x")
                return
            except (OSError, urllib.error.HTTPError):
                time.sleep(0.1)
        raise AssertionError("weed does not get ready: " + (folder / "log").read_text()[-2000:])

    def call(self, method, path, body=b"", query=""):
        """Signed here once more, independently of the server's own signature."""
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        host = self.endpoint.removeprefix("http://")
        digest = hashlib.sha256(body).hexdigest()
        headers = {"host": host, "x-amz-content-sha256": digest, "x-amz-date": now}
        lines = "".join(f"{k}:{v}\n" for k, v in headers.items())
        names = ";".join(headers)
        canonical = f"{method}\n{path}\n{query}\n{lines}\n{names}\n{digest}"
        scope = f"{now[:8]}/us-east-1/s3/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        key = ("AWS4" + SECRET).encode()
        for part in scope.split("/"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
        headers["authorization"] = f"AWS4-HMAC-SHA256 Credential={KEY}/{scope},SignedHeaders={names},Signature={signature}"
        del headers["host"]
        request = urllib.request.Request(self.endpoint + path + (f"?{query}" if query else ""), data=body or None,
                                         method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    def keys(self, bucket):
        text = self.call("GET", f"/{bucket}", query="list-type=2&max-keys=1000&prefix=").decode()
        return re.findall(r"<Key>([^<]*)</Key>", text)

    def stop(self):
        self.process.kill()
        self.process.wait()


class Postgres:
    def __init__(self, folder):
        self.folder = folder
        self.address = subprocess.run([ROOT / "tests/cluster/postgres", "start", folder], check=True,
                                      capture_output=True, text=True).stdout.strip()

    def schema(self, name):
        """How to connect to an empty schema of its own."""
        subprocess.run(["psql", self.address, "-qc", f"CREATE SCHEMA {name}"], check=True)
        return f"{self.address} options='-c search_path={name}'"

    def stop(self):
        subprocess.run([ROOT / "tests/cluster/postgres", "stop", self.folder, "immediate"], check=False)


class Server:
    def __init__(self, context, folder, *flags, database=None, plain=False):
        folder.mkdir()
        self.log = folder / "log"
        ports = folder / "ports"
        environment = dict(os.environ, AWS_ACCESS_KEY_ID=KEY, AWS_SECRET_ACCESS_KEY=SECRET,
                           OVPRESS_JOB_STORE=database or context.postgres.address)
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [context.build / "server/ovpress-server", f"--data-dir={folder}/data", f"--port-file={ports}",
                 *([] if plain else ["--listen=127.0.0.1:0", "--metrics=127.0.0.1:0", "--min-free-bytes=0"]), *flags],
                stdout=log, stderr=log, env=environment)
        deadline = time.monotonic() + 30
        while not ports.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                raise AssertionError(f"no start with {flags}: {self.log.read_text()[-1500:]}")
            time.sleep(0.02)
        port, http = ports.read_text().split()
        self.address, self.http = f"127.0.0.1:{port}", f"127.0.0.1:{http}"

    def metric(self, name):
        with urllib.request.urlopen(f"http://{self.http}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return sum(float(v) for v in re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", text, re.M))

    def requests(self, method):
        return int(self.metric(f'ovpress_s3_requests_total{{method="{method}"}}'))

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=60)


class Context:
    def __init__(self, arguments, folder):
        self.build = pathlib.Path(arguments.build).resolve()
        self.folder = folder
        self.postgres = Postgres(folder / "postgres")
        self.seaweed = Seaweed(folder / "seaweed")
        self.count = 0

    def s3_server(self, *flags):
        self.count += 1
        return Server(self, self.folder / f"server{self.count}", "--blob-store=s3://store/blobs",
                      f"--s3-endpoint={self.seaweed.endpoint}", "--s3-path-style", *flags)

    def local_server(self, name):
        """Over the embedded stores: SQLite and a directory."""
        return Server(self, self.folder / name, database="sqlite")

    def cli(self, *arguments, fails=False):
        answer = subprocess.run([self.build / "client/cli/ovpress", *map(str, arguments)], capture_output=True, text=True,
                                timeout=300)
        assert (answer.returncode != 0) == fails, f"{arguments}: {answer.returncode} {answer.stderr}"
        return answer.stderr if fails else answer.stdout

    def stop(self):
        self.seaweed.stop()
        self.postgres.stop()


def sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


OPTIONS = ["--mode", "int4_sym", "--group-size", "32", "--ratio", "0.6"]


def test_same_bytes_as_local_and_any_server_has_the_blobs(c):
    out, local = c.folder / "out.xml", c.folder / "local.xml"
    c.cli("compress", MODEL, "-o", local, "-q", *OPTIONS)
    a, b = c.s3_server(), c.s3_server()
    try:
        c.cli("compress", MODEL, "-o", out, "-q", "--server", a.address, *OPTIONS)
        assert sha(out.with_suffix(".bin")) == sha(local.with_suffix(".bin"))
        assert sha(out) == sha(local)
        # The other server has the model without an upload; its result is the same object.
        before = b.metric("ovpress_s3_sent_bytes_total")
        c.cli("compress", MODEL, "-o", out, "-q", "--server", b.address, *OPTIONS)
        assert sha(out.with_suffix(".bin")) == sha(local.with_suffix(".bin"))
        sent = b.metric("ovpress_s3_sent_bytes_total") - before
        assert sent < MODEL.with_suffix(".bin").stat().st_size, sent
    finally:
        a.stop()
        b.stop()


def test_models_by_address(c):
    address = "s3://models/in/llama"
    for suffix in (".xml", ".bin"):
        c.seaweed.call("PUT", f"/models/in/llama{suffix}", MODEL.with_suffix(suffix).read_bytes())
    local = c.folder / "address.xml"
    c.cli("compress", MODEL, "-o", local, "-q", *OPTIONS)
    server = c.s3_server("--allow-address=s3://models/in", "--allow-address=s3://models/out/")
    try:
        report = c.folder / "address.json"
        c.cli("compress", address + ".xml", "-o", "s3://models/out/llama.xml", "--report", report, "--server",
              server.address, *OPTIONS)
        for suffix in (".xml", ".bin"):
            result = c.seaweed.call("GET", f"/models/out/llama{suffix}")
            # The report was asked for, so the .xml is that of a run with errors measured: the same.
            assert hashlib.sha256(result).hexdigest() == sha(local.with_suffix(suffix)), suffix
        assert report.stat().st_size > 1000
        # Into files, too.
        out = c.folder / "from_address.xml"
        c.cli("compress", address + ".xml", "-o", out, "-q", "--server", server.address, *OPTIONS)
        assert sha(out.with_suffix(".bin")) == sha(local.with_suffix(".bin"))
        for bad, words in (("s3://models/secret/llama.xml", "not among the addresses"),
                           ("s3://store/blobs/x.xml", "not among the addresses"),
                           ("s3://models/in/../secret/llama.xml", "segment"),
                           ("s3://models/in/gone.xml", "404")):
            error = c.cli("compress", bad, "-o", out, "-q", "--server", server.address, fails=True)
            assert words in error, error
        error = c.cli("compress", address + ".xml", "-o", address + ".xml", "--server", server.address, fails=True)
        assert "write over the input" in error or "not among" in error, error
        error = c.cli("compress", address + ".xml", "-o", out, "-q", fails=True)
        assert "--server" in error, error
        assert c.seaweed.call("GET", "/models/in/llama.bin") == MODEL.with_suffix(".bin").read_bytes()
    finally:
        server.stop()


def test_a_server_without_an_object_store_takes_no_address(c):
    server = c.local_server("plain")
    try:
        error = c.cli("compress", "s3://models/in/llama.xml", "-o", c.folder / "no.xml", "-q", "--server", server.address,
                      fails=True)
        assert "upload it" in error, error
    finally:
        server.stop()


def test_wrong_flags_are_told(c):
    for flags, words in ((["--blob-store=s3://Bad_Bucket/x"], "bucket's name"),
                         (["--blob-store=s3://store/blobs", "--s3-endpoint=nowhere"], "must start with http"),
                         (["--blob-store=s3://store/blobs", f"--s3-endpoint={c.seaweed.endpoint}", "--s3-path-style",
                           "--allow-address=s3://store/"], "overlaps"),
                         (["--allow-address=s3://models/"], "needs --blob-store"),
                         ([], "a queue in PostgreSQL needs --blob-store s3://"),
                         ([f"--blob-store={c.folder}/shared"], "a queue in PostgreSQL needs --blob-store s3://")):
        try:
            c.count += 1
            Server(c, c.folder / f"wrong{c.count}", *flags).stop()
        except AssertionError as error:
            assert words in str(error), error
        else:
            raise AssertionError(f"{flags} were taken")


def test_an_object_store_with_a_queue_of_one_server_is_warned_of(c):
    alone = c.s3_server("--job-store=sqlite")
    try:
        c.cli("compress", MODEL, "-o", c.folder / "alone.xml", "-q", "--server", alone.address, "--mode", "int8_sym")
        assert alone.log.read_text().count("must be the only server on s3://store/blobs") == 1
    finally:
        alone.stop()
    several = c.s3_server()
    several.stop()
    assert "only server" not in several.log.read_text()


def certificates(folder):
    """A CA, a certificate for 127.0.0.1 of it, and another CA."""
    folder.mkdir()

    def openssl(*arguments):
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, cwd=folder)

    for name in ("ca", "other"):
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}", "-keyout", f"{name}.key",
                "-out", f"{name}.pem")
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=store", "-keyout", "store.key", "-out", "store.csr")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    openssl("x509", "-req", "-in", "store.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
            "-extfile", "names", "-out", "store.pem")


def test_tls_with_a_ca_of_ones_own(c):
    folder = c.folder / "tls"
    certificates(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "store.pem", folder / "store.key")
    secured = proxies.BusyStore(c.seaweed.port, tls=context)
    flags = ["--blob-store=s3://store/tls", f"--s3-endpoint={secured.endpoint}", "--s3-path-style"]
    database = c.postgres.schema("tls")
    out, local = c.folder / "tls.xml", c.folder / "tls_local.xml"
    c.cli("compress", MODEL, "-o", local, "-q", *OPTIONS)
    try:
        server = Server(c, folder / "right", *flags, f"--s3-ca-file={folder}/ca.pem", database=database)
        try:
            c.cli("compress", MODEL, "-o", out, "-q", "--server", server.address, *OPTIONS)
            assert sha(out.with_suffix(".bin")) == sha(local.with_suffix(".bin"))
            assert server.metric("ovpress_s3_retries_total") == 0
        finally:
            server.stop()
        for name, more, words in (("wrong", [f"--s3-ca-file={folder}/other.pem"], "certificate"), ("system", [], "certificate"),
                                  ("gone", [f"--s3-ca-file={folder}/gone.pem"], "gone.pem")):
            begin = time.monotonic()
            try:
                Server(c, folder / name, *flags, *more, database=database).stop()
            except AssertionError:
                lines = [line for line in (folder / name / "log").read_text().splitlines() if line.startswith("ovpress-server: ")]
                assert len(lines) == 1 and words in lines[0], lines
                # At once: trying again cannot help.
                assert time.monotonic() - begin < 5
            else:
                raise AssertionError(f"{name} was taken")
    finally:
        secured.close()


def test_the_overlays_configuration_starts(c):
    """The file of the ConfigMap as it is, but for the addresses."""
    text = (ROOT / "deploy/kubernetes/overlays/cluster/server.conf").read_text()
    secret = c.folder / "job-store"
    secret.write_text(c.postgres.schema("overlay") + "\n")
    for name, value in (("listen", "127.0.0.1:0"), ("metrics", "127.0.0.1:0"), ("job-store-file", secret),
                        ("blob-store", f"s3://store/overlay\ns3-endpoint={c.seaweed.endpoint}\ns3-path-style=true")):
        text, count = re.subn(rf"^{name}=.*$", lambda _, n=name, v=value: f"{n}={v}", text, flags=re.M)
        assert count == 1, name
    configuration = c.folder / "server.conf"
    configuration.write_text(text)
    # As the pod starts it: flags on the command line are those of deployment.yaml.
    server = Server(c, c.folder / "overlay", f"--config={configuration}", "--server-id=ovpress-5d9c-x", database="sqlite",
                    plain=True)
    try:
        out, local = c.folder / "overlay.xml", c.folder / "overlay_local.xml"
        c.cli("compress", MODEL, "-o", local, "-q", *OPTIONS)
        c.cli("compress", MODEL, "-o", out, "-q", "--server", server.address, *OPTIONS)
        assert sha(out.with_suffix(".bin")) == sha(local.with_suffix(".bin"))
        assert any(key.startswith("overlay/") for key in c.seaweed.keys("store"))
        log = server.log.read_text()
        assert "as ovpress-5d9c-x" in log and '"level":"warn' not in log, log
    finally:
        server.stop()


def test_what_shared_stores_count_is_watched(c):
    watched = set()
    for file in (*(ROOT / "deploy/prometheus").glob("*.yaml"), ROOT / "deploy/grafana/dashboards/ovpress.json"):
        watched |= set(re.findall(r"ovpress_(?:database|s3)_\w+", file.read_text()))
    server = c.s3_server()
    try:
        with urllib.request.urlopen(f"http://{server.http}/metrics", timeout=10) as answer:
            offered = set(re.findall(r"^(ovpress_(?:database|s3)_\w+)", answer.read().decode(), re.M))
    finally:
        server.stop()
    assert offered and watched == offered, watched ^ offered


def test_a_killed_server_leaves_nothing_for_ever(c):
    server = c.s3_server("--sweep-interval=0.2")
    try:
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        server = c.s3_server("--sweep-interval=0.2")
        out = c.folder / "after.xml"
        c.cli("compress", MODEL, "-o", out, "-q", "--server", server.address, "--mode", "int8_sym")
        assert server.metric("ovpress_s3_failures_total") == 0
    finally:
        server.stop()


def measure(c, megabytes):
    """One model over both stores in turns; the first run of each is not counted."""
    hidden = 2048
    layers = max(1, int(megabytes / 88))
    model = c.folder / "big"
    subprocess.run([c.build / "bench/make_ir", model, "--layers", str(layers), "--hidden", str(hidden), "--intermediate",
                    "5504", "--vocabulary", "8000"], check=True, capture_output=True)
    size = model.with_suffix(".bin").stat().st_size
    rows = {}
    times = {"local": [], "s3": []}
    for turn in range(4):
        for kind in ("local", "s3"):
            shutil.rmtree(c.folder / f"{kind}{turn}", ignore_errors=True)
            if kind == "local":
                server = c.local_server(f"{kind}{turn}")
            else:
                server = Server(c, c.folder / f"{kind}{turn}", f"--blob-store=s3://store/measure{turn}",
                                f"--s3-endpoint={c.seaweed.endpoint}", "--s3-path-style",
                                database=c.postgres.schema(f"measure{turn}"))
            try:
                if kind == "s3":
                    # A server without work, which looks for some now and then.
                    time.sleep(1)
                    idle = server.metric("ovpress_database_statements_total")
                    time.sleep(5)
                    before = server.metric("ovpress_database_statements_total")
                    idle = (before - idle) / 5
                start = time.monotonic()
                c.cli("compress", f"{model}.xml", "-o", c.folder / "big_out.xml", "-q", "--mode", "int4_sym", "--server",
                      server.address)
                took = time.monotonic() - start
                if turn:
                    times[kind].append(took)
                if kind == "s3":
                    rows = {m: server.requests(m) for m in ("put", "get", "head", "list", "delete")}
                    rows["sent"] = server.metric("ovpress_s3_sent_bytes_total")
                    rows["received"] = server.metric("ovpress_s3_received_bytes_total")
                    rows["statements"] = server.metric("ovpress_database_statements_total") - before
                    rows["idle_statements_per_second"] = idle
                    rows["seconds"] = round(took, 2)
            finally:
                server.stop()
    out = (c.folder / "big_out.bin").stat().st_size
    print(f"model of {size / 1e6:.0f} MB, result of {out / 1e6:.0f} MB, int4_sym; upload, job and download")
    for kind in ("local", "s3"):
        print(f"{kind}: {' '.join(f'{t:.2f}' for t in sorted(times[kind]))} s")
    print(f"ratio of the medians {sorted(times['s3'])[1] / sorted(times['local'])[1]:.2f}")
    print(rows)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--megabytes", type=int, default=700)
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="object_store_"))
    folder.chmod(0o755)
    context = Context(arguments, folder)
    passed = failed = 0
    try:
        if arguments.measure:
            measure(context, arguments.megabytes)
            return 0
        for name, test in list(globals().items()):
            if not name.startswith("test_") or (arguments.names and name not in arguments.names):
                continue
            try:
                test(context)
                passed += 1
                print(f"ok {name}")
            except Exception:  # noqa: BLE001 - told and counted
                failed += 1
                print(f"FAILED {name}")
                traceback.print_exc(limit=3, file=sys.stdout)
    finally:
        context.stop()
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
