#!/usr/bin/env python3
"""Checks what is under deploy/, the Dockerfile and the operations documents
against the real programs: manifests against Kubernetes' schemas, flags against
--help, configuration files by starting the server with them, rules with
promtool, and every query of the dashboard with a real Prometheus that watches a
real server under load.

  tests/deploy/run.py --build build/ci [NAME...]
  tests/deploy/run.py --update    writes what is derived (prometheusrule.yaml)

Needs Debian's package prometheus and tests/deploy/requirements.txt. The last
line is "N passed, N failed"."""

from __future__ import annotations

import argparse
import base64
import functools
import json
import math
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

import grpc
import kubernetes_validate
import yaml

import kustomize

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/testing"))
from test_runner import run_tests

DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
OVERLAYS = sorted(p.name for p in (KUBERNETES / "overlays").iterdir())
# One server with a volume; the overlay cluster has many, on shared stores.
SINGLE = [o for o in OVERLAYS if o != "cluster"]
PROMETHEUS = DEPLOY / "prometheus"
RULES = KUBERNETES / "components/monitoring/prometheusrule.yaml"
DASHBOARD = DEPLOY / "grafana/dashboards/ovpress.json"
DOCUMENTS = [ROOT / "docs/operations.md", ROOT / "docs/runbooks.md"]
MODELS = ROOT / "tests/data/models"
# The oldest with native gRPC probes, and the newest that we have a schema of.
KUBERNETES_VERSIONS = ("1.27", kubernetes_validate.latest_version())
CUSTOM_KINDS = {"ServiceMonitor", "PrometheusRule"}
MIB = 1 << 20
# The memory model of docs/operations.md.
TRANSFER_BYTES = 64 * MIB
BASE_BYTES = 256 * MIB
# The memory of docs/object-store.md: blocks, and 256 KiB for each transfer.
BLOCK_BYTES = 64 * MIB
S3_TRANSFER_BYTES = MIB // 4
# server/main.cc: Shutdown's deadline; and what a kubelet may take.
SHUTDOWN_SECONDS = 2
GRACE_MARGIN_SECONDS = 10


def run(*command, **options) -> subprocess.CompletedProcess:
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=120, **options)


def size_bytes(text: str) -> int:
    """1024, 64MiB, 2304m (compose), 1280Mi (Kubernetes), as bytes."""
    match = re.fullmatch(r"(\d+)\s*([KMGTkmgt]?)i?[Bb]?", text)
    assert match, f"'{text}' is not a size"
    return int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}[match[2].lower()]


def config_of(text: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    pairs = [line.split("=", 1) for line in lines]
    assert len({name for name, _ in pairs}) == len(pairs), "a name stands twice"
    return dict(pairs)


class Server:
    """The real server; ports are free ones, read from --port-file."""

    def __init__(self, c: "Context", *flags: str):
        c.servers += 1
        self.folder = c.work / f"server{c.servers}"
        self.folder.mkdir()
        ports = self.folder / "ports"
        command = [c.server, *flags, "--listen=127.0.0.1:0", "--metrics=127.0.0.1:0", f"--data-dir={self.folder / 'data'}", f"--port-file={ports}"]
        self.log = self.folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while not ports.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                raise AssertionError(f"the server did not start with {flags}: {self.log.read_text()[-800:]}")
            time.sleep(0.01)
        port, http_port = ports.read_text().split()
        self.address, self.http = f"127.0.0.1:{port}", f"127.0.0.1:{http_port}"

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://{self.http}/metrics", timeout=10) as answer:
            return answer.read().decode()

    def health(self, service: str) -> int:
        """grpc.health.v1.Health/Check, as a kubelet calls it; 1 is SERVING."""
        # One string field in, one enum field out: not worth generated code.
        name = service.encode()
        with grpc.insecure_channel(self.address) as channel:
            answer = channel.unary_unary("/grpc.health.v1.Health/Check")(b"\x0a" + bytes([len(name)]) + name, timeout=10)
        return answer[1] if answer else 0

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Context:
    def __init__(self, build: pathlib.Path, work: pathlib.Path):
        self.work, self.servers, self._live = work, 0, None
        self.server, self.ovpress = build / "server/ovpress-server", build / "client/cli/ovpress"
        self.promtool, self.prometheus = shutil.which("promtool"), shutil.which("prometheus")
        assert self.promtool and self.prometheus, "Debian's package prometheus is missing"

    @functools.cached_property
    def server_flags(self) -> set[str]:
        return flags_of(run(self.server, "--help").stdout)

    @functools.cache
    def command_flags(self, subcommand: str) -> set[str]:
        answer = run(self.ovpress, subcommand, "--help")
        assert answer.returncode == 0, f"ovpress has no '{subcommand}'"
        return flags_of(answer.stdout)

    @property
    def live(self) -> "Live":
        """Made once; tests after a failed start fail for the same reason."""
        if self._live is None:
            try:
                self._live = Live(self)
            except Exception as error:
                self._live = error
        if isinstance(self._live, Exception):
            raise AssertionError(f"no server under load: {self._live}")
        return self._live

    def close(self):
        if isinstance(self._live, Live):
            self._live.close()


def flags_of(help_text: str) -> set[str]:
    flags = set(re.findall(r"^\s+(?:-\w,)?(--[\w-]+)", help_text, re.M))
    assert "--help" in flags, help_text
    return flags


# --- a server under load, and a Prometheus that watches it ---


class Live:
    """About 20 seconds of every kind of work, seen by Prometheus each second."""

    def __init__(self, c: Context):
        self.c = c
        self.folder = c.work / "prometheus"
        self.folder.mkdir()
        self.server = Server(c, "--threads=1", "--max-running=1", "--max-xml-bytes=1MiB")
        for name in ("recording.yaml", "alerts.yaml"):
            text = (PROMETHEUS / name).read_text()
            (self.folder / name).write_text(text.replace("interval: 15s", "interval: 1s"))
        (self.folder / "prometheus.yaml").write_text(yaml.safe_dump({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["recording.yaml", "alerts.yaml"],
            "scrape_configs": [{"job_name": "ovpress", "static_configs": [{"targets": [self.server.http]}]}]}))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [c.prometheus, "--config.file=prometheus.yaml", "--storage.tsdb.path=data", f"--web.listen-address={self.address}"],
                cwd=self.folder, stdout=log, stderr=log)
        try:
            self.load()
        except BaseException:
            self.close()
            raise

    def load(self):
        broken = self.folder / "nan.xml"
        shutil.copy(MODELS / "llama/openvino_model.xml", broken)
        weights = bytearray((MODELS / "llama/openvino_model.bin").read_bytes())
        weights[len(weights) // 2 : len(weights) // 2 + 4096] = b"\xff" * 4096  # NaNs, wherever a float begins
        broken.with_suffix(".bin").write_bytes(weights)
        large = self.folder / "large.xml"
        large.write_text((MODELS / "llama/openvino_model.xml").read_text() + "<!--" + "x" * MIB + "-->")
        shutil.copy(MODELS / "llama/openvino_model.bin", large.with_suffix(".bin"))
        out = self.folder / "out.xml"

        def call(*arguments, fails=False):
            answer = run(self.c.ovpress, "compress", *arguments, "-o", out, "--quiet", "--retry-seconds=0", "--server", self.server.address)
            assert (answer.returncode != 0) == fails, f"{arguments}: {answer.returncode} {answer.stderr}"

        deadline = time.monotonic() + 20
        for i in range(1000):
            model = MODELS / ("llama", "qwen2", "gpt2")[i % 3] / "openvino_model.xml"
            call(model, "--mode=int4_sym", "--group-size=32", f"--ratio={0.3 + i / 2000}")
            call(model, "--mode=int8_asym")  # from the third round on out of the result cache
            call(broken, f"--mode={('int8_asym', 'int8_sym')[i % 2]}", fails=True)
            call(large, fails=True)
            if time.monotonic() > deadline and i >= 10:
                break
        for _ in range(50):
            if self.query("count(up)"):
                break
            time.sleep(0.2)
        time.sleep(2)  # one more scrape and one more round of rules

    def get(self, path: str, **parameters) -> dict:
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            data = json.load(answer)
        assert data["status"] == "success", data
        return data["data"]

    def query(self, expression: str) -> list[float]:
        values = [float(sample["value"][1]) for sample in self.get("query", query=expression)["result"]]
        return [v for v in values if not math.isnan(v)]

    def close(self):
        self.process.terminate()
        self.process.wait(timeout=20)
        self.server.__exit__()


# --- Kubernetes ---


def documents_of(overlay: str) -> list[dict]:
    return kustomize.build(KUBERNETES / "overlays" / overlay)


def jobs() -> dict[str, dict]:
    return {p.name: kustomize.load_all(p)[0] for p in sorted((KUBERNETES / "jobs").iterdir())}


def only(documents: list[dict], kind: str, name: str | None = None) -> dict:
    found = [d for d in documents if d["kind"] == kind and name in (None, d["metadata"].get("name"))]
    assert len(found) == 1, f"{len(found)} of {kind} {name or ''}"
    return found[0]


def config_map(documents: list[dict]) -> dict[str, str]:
    return config_of(only(documents, "ConfigMap")["data"]["server.conf"])


def test_manifests_are_valid(c: Context):
    count = 0
    for origin, documents in [(o, documents_of(o)) for o in OVERLAYS] + [(n, [d]) for n, d in jobs().items()]:
        for document in documents:
            if document["kind"] in CUSTOM_KINDS:
                continue
            for version in KUBERNETES_VERSIONS:
                try:
                    kubernetes_validate.validate(document, version, strict=True)
                except kubernetes_validate.ValidationError as error:
                    raise AssertionError(f"{origin}: {document['kind']} in {version}: {error.message} at {list(error.path)}") from None
                count += 1
    assert count > 50, count


def test_every_file_is_used(c: Context):
    used = set()
    for path in KUBERNETES.rglob("kustomization.yaml"):
        spec = yaml.safe_load(path.read_text())
        files = spec.get("resources", []) + [f for g in spec.get("configMapGenerator", []) for f in g["files"]]
        used |= {(path.parent / f).resolve() for f in files} | {path}
    loose = {p.resolve() for p in KUBERNETES.rglob("*") if p.is_file()} - used
    assert {p.relative_to(KUBERNETES).as_posix() for p in loose if p.parent.name != "jobs"} == {
        "components/autoscaling/adapter-rules.yaml", "overlays/cluster/adapter-rules.yaml"}


def test_rendering_equals_kubectl(c: Context):
    """Counts as passed without kubectl: the renderer above is then the only one."""
    command = [shutil.which("kustomize"), "build"] if shutil.which("kustomize") else [shutil.which("kubectl"), "kustomize"]
    if not command[0]:
        print("     (no kubectl here)")
        return
    normal = lambda text: re.sub(r"ovpress-config-[a-z0-9]{10}", "ovpress-config-HASH", text)
    key = lambda d: (d["kind"], d["metadata"]["name"])
    for overlay in OVERLAYS:
        theirs = run(*command, KUBERNETES / "overlays" / overlay)
        assert theirs.returncode == 0, theirs.stderr
        expected = sorted(yaml.safe_load_all(normal(theirs.stdout)), key=key)
        ours = sorted(json.loads(normal(json.dumps(documents_of(overlay)))), key=key)
        assert [key(d) for d in ours] == [key(d) for d in expected], overlay
        for a, b in zip(ours, expected):
            assert a == b, f"{overlay}: {key(a)}\n{json.dumps(a, sort_keys=True)}\n{json.dumps(b, sort_keys=True)}"


def test_config_files_are_accepted(c: Context):
    """Every line reaches the server: it starts, and what it shows is what the file says."""
    texts = {o: only(documents_of(o), "ConfigMap")["data"]["server.conf"] for o in OVERLAYS}
    texts["compose"] = (DEPLOY / "compose/server.conf").read_text()
    for origin, text in texts.items():
        config = config_of(text)
        unknown = {f"--{name}" for name in config} - c.server_flags
        assert not unknown, f"{origin}: {unknown}"
        path = c.work / f"{origin}.conf"
        path.write_text(with_secrets(c, text, origin))
        with Server(c, f"--config={path}") as server:
            page = server.metrics()
            assert f"ovpress_memory_budget_bytes {size_bytes(config['total-memory-bytes'])}\n" in page, origin
            assert '"level":"info"' in server.log.read_text(), f"{origin}: log-format"
    # A name that the server does not know is an error, or the above shows nothing.
    path = c.work / "wrong.conf"
    path.write_text("no-such-limit=1\n")
    assert run(c.server, f"--config={path}", f"--data-dir={c.work / 'wrong'}").returncode != 0


def test_the_package_shows_how_to_let_only_some_in(c: Context):
    """Each example that stands behind a # is one that the server takes, and all of
    them together are a server that wants to know who calls."""
    text = (DEPLOY / "debian/server.conf").read_text()
    examples = re.findall(r"(?m)^#([a-z0-9-]+)=", text)
    help_text = run(c.server, "--help").stdout
    access = set(re.findall(r"--([a-z0-9-]+)", " ".join(line.split()[0] for line in help_text.split("\nAccess:")[1].split("\n\n")[0].splitlines() if line.strip().startswith("--"))))
    assert len(access) > 15 and access - set(examples) == {"insecure-listen"}, access - set(examples)
    assert {f"--{name}" for name in examples} <= c.server_flags, examples
    with Server(c, f"--config={DEPLOY / 'debian/server.conf'}") as server:
        assert "plain text; everybody may call" in server.log.read_text()
    folder = secrets(c)
    shutil.copy(folder / "tls.crt", folder / "clients.pem")
    shutil.copy(KUBERNETES / "overlays/prod-secured/quotas.json", folder)
    point = run("openssl", "ec", "-in", folder / "tls.key", "-pubout", "-outform", "DER", "-out", folder / "key.der")
    assert point.returncode == 0, point.stderr
    x, y = ((folder / "key.der").read_bytes()[a:b] for a, b in ((-64, -32), (-32, None)))
    b64 = lambda data: base64.urlsafe_b64encode(data).decode().rstrip("=")
    (folder / "jwks.json").write_text(json.dumps({"keys": [{"kty": "EC", "crv": "P-256", "kid": "a", "x": b64(x), "y": b64(y)}]}))
    live = re.sub(r"(?m)^#(?=[a-z0-9-]+=)", "", text).replace("listen=127.0.0.1:8470\n", "")
    path = c.work / "packaged.conf"
    path.write_text(live.replace("=/etc/ovpress/", f"={folder}/"))
    with Server(c, f"--config={path}") as server:
        said = server.log.read_text()
        for part in ("client certificates: request", "callers must say who they are", "token", "JWT", "certificate"):
            assert part in said, (part, said)


def secrets(c: Context) -> pathlib.Path:
    """A folder with what the Secrets of prod-secured hold."""
    folder = c.work / "secrets"
    if not folder.exists():
        folder.mkdir()
        made = run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=ovpress",
                   "-addext", "subjectAltName=DNS:localhost,DNS:ovpress.ovpress.svc", "-keyout", folder / "tls.key", "-out", folder / "tls.crt")
        assert made.returncode == 0, made.stderr
        token = run(c.server, "token", "new", "--file", folder / "tokens.json", "--identity", "nightly-pipeline")
        assert token.returncode == 0, token.stderr
        (folder / "token").write_text(token.stdout)
    return folder


def with_secrets(c: Context, text: str, overlay: str) -> str:
    """A server.conf whose files are those of secrets() and of the overlay."""
    text = re.sub(r"=/etc/ovpress-(?:tls|tokens)/", f"={secrets(c)}/", text)
    # The shared stores are not here; their names are checked against --help.
    text = re.sub(r"^(?:job-store-file|blob-store)=.*\n", "", text, flags=re.M)
    return text.replace("=/etc/ovpress/", f"={KUBERNETES / 'overlays' / overlay}/")


def test_probes_ask_for_what_the_server_answers(c: Context):
    with Server(c) as server:
        for overlay in OVERLAYS:
            documents = documents_of(overlay)
            listen = int(config_map(documents)["listen"].rsplit(":", 1)[1])
            container = kustomize.containers(only(documents, "Deployment" if overlay == "cluster" else "StatefulSet"))[0]
            probes = {name: container[name] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
            if "tls-cert" in config_map(documents):
                # A kubelet speaks no TLS to gRPC.
                paths = {name: probe["httpGet"]["path"] for name, probe in probes.items()}
                assert paths == {"startupProbe": "/readyz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}, overlay
                for probe in probes.values():
                    assert probe["httpGet"]["port"] in {p["name"] for p in container["ports"]} - {"grpc"}, overlay
                    with urllib.request.urlopen(f"http://{server.http}{probe['httpGet']['path']}", timeout=10) as answer:
                        assert answer.status == 200
                continue
            for name, probe in probes.items():
                assert probe["grpc"]["port"] == listen, f"{overlay}: {name}"
                assert server.health(probe["grpc"].get("service", "")) == 1, f"{overlay}: {name}"
            assert probes["readinessProbe"]["grpc"].get("service"), "readiness asks for the service that drains"
        try:
            server.health("no.such.Service")
            raise AssertionError("health knows any service")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.NOT_FOUND


def test_sizes_follow_from_the_configuration(c: Context):
    for overlay in SINGLE:
        documents = documents_of(overlay)
        config = config_map(documents)
        spec = only(documents, "StatefulSet")["spec"]
        container = spec["template"]["spec"]["containers"][0]
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        memory = size_bytes(config["total-memory-bytes"]) + TRANSFER_BYTES * int(config["max-transfers"]) + BASE_BYTES
        assert size_bytes(limits["memory"]) == size_bytes(requests["memory"]) == memory, f"{overlay}: memory should be {memory // MIB}Mi"
        assert requests["cpu"] == config["threads"], f"{overlay}: threads"
        assert size_bytes(config["default-job-memory-bytes"]) * int(config["max-running"]) <= size_bytes(config["total-memory-bytes"]), f"{overlay}: max-running jobs do not fit"
        apart = "token-file" in config
        assert apart == ("tls-cert" in config) == ("insecure-listen" not in config), overlay
        own, all_of_it = int(config["max-transfers-per-owner"]), int(config["max-transfers"])
        assert own < all_of_it if apart else own == all_of_it, f"{overlay}: without a login all clients are one owner, with one they are apart"
        volume = size_bytes(spec["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"])
        # ext4 keeps about 5 % for itself.
        assert size_bytes(config["max-store-bytes"]) + size_bytes(config["min-free-bytes"]) <= volume * 0.96, f"{overlay}: the store does not fit the volume"
        drain = float(config["drain-delay-seconds"]) + float(config["drain-seconds"]) + SHUTDOWN_SECONDS
        grace = spec["template"]["spec"]["terminationGracePeriodSeconds"]
        assert grace >= drain + GRACE_MARGIN_SECONDS, f"{overlay}: a drain of {drain} s in {grace} s of grace"


def test_names_and_labels_fit_together(c: Context):
    for overlay in SINGLE:
        documents = documents_of(overlay)
        stateful = only(documents, "StatefulSet")
        config = config_map(documents)
        labels = kustomize.pod_labels(stateful)
        pod = kustomize.pod_spec(stateful)
        container = pod["containers"][0]
        ports = {p["name"]: p["containerPort"] for p in container["ports"]}
        assert ports == {"grpc": int(config["listen"].rsplit(":", 1)[1]), "metrics": int(config["metrics"].rsplit(":", 1)[1])}
        services = [d for d in documents if d["kind"] == "Service"]
        assert len(services) == 2
        for service in services:
            assert service["spec"]["selector"].items() <= labels.items()
            assert all(p["targetPort"] in ports and p["port"] == ports[p["targetPort"]] for p in service["spec"]["ports"])
        headless = only(documents, "Service", stateful["spec"]["serviceName"])
        assert headless["spec"]["clusterIP"] == "None" and headless["spec"]["publishNotReadyAddresses"]
        for document in documents:
            if document["kind"] in ("PodDisruptionBudget", "StatefulSet"):
                assert document["spec"]["selector"]["matchLabels"].items() <= labels.items()
        # minAvailable 1 of 1 would forbid to drain a node.
        assert only(documents, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
        policy = only(documents, "NetworkPolicy")["spec"]
        assert policy["podSelector"]["matchLabels"].items() <= labels.items()
        assert sorted(p["port"] for rule in policy["ingress"] for p in rule["ports"]) == sorted(ports.values())
        assert all(rule["from"] for rule in policy["ingress"]) and "Egress" in policy["policyTypes"] and "egress" not in policy
        volumes = {v["name"] for v in pod["volumes"]} | {v["metadata"]["name"] for v in stateful["spec"]["volumeClaimTemplates"]}
        mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
        assert set(mounts) == volumes and mounts["data"] == "/data"
        assert f"--config={mounts['config']}/server.conf" in container["args"]
        retention = stateful["spec"]["persistentVolumeClaimRetentionPolicy"]
        assert set(retention.values()) == {"Retain"}
        monitors = [d for d in documents if d["kind"] == "ServiceMonitor"]
        assert (overlay == "small") == (not monitors)
        for monitor in monitors:
            matching = [s for s in services if monitor["spec"]["selector"]["matchLabels"].items() <= s["metadata"]["labels"].items()]
            assert len(matching) == 1, "each pod is to be scraped once"
            assert monitor["spec"]["endpoints"][0]["port"] in {p["name"] for p in matching[0]["spec"]["ports"]}
            assert matching[0]["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "ovpress", "the rules say job=\"ovpress\""
    nightly = jobs()["compress-nightly.yaml"]
    allowed = policy["ingress"][0]["from"][0]["podSelector"]["matchLabels"]
    assert allowed.items() <= kustomize.pod_labels(nightly).items(), "the NetworkPolicy keeps the CronJob out"
    assert not labels.items() <= kustomize.pod_labels(nightly).items(), "the Service would send calls to the CronJob"


def test_autoscaler(c: Context):
    documents = documents_of("prod-autoscaled")
    scaler = only(documents, "HorizontalPodAutoscaler")["spec"]
    assert "replicas" not in only(documents, "StatefulSet")["spec"], "the autoscaler owns the number"
    assert scaler["behavior"]["scaleDown"]["selectPolicy"] == "Disabled", "a pod's results would be lost from sight"
    assert only(documents, "Service", "ovpress")["spec"]["sessionAffinity"] == "ClientIP"
    rule = yaml.safe_load((KUBERNETES / "components/autoscaling/adapter-rules.yaml").read_text())["rules"][0]
    assert scaler["metrics"][0]["pods"]["metric"]["name"] == rule["name"]["as"]
    series = re.search(r'__name__="([^"]+)"', rule["seriesQuery"])[1]
    assert series in records(), series
    # Only the overlay that says so has more than one pod.
    assert all(only(documents_of(o), "StatefulSet")["spec"]["replicas"] == 1 for o in SINGLE if o != "prod-autoscaled")


def test_the_cluster_overlay(c: Context):
    documents = documents_of("cluster")
    config, deployment = config_map(documents), only(documents, "Deployment")
    spec, pod = deployment["spec"], kustomize.pod_spec(deployment)
    assert not any(d["kind"] == "StatefulSet" or "volumeClaimTemplates" in d.get("spec", {}) for d in documents)
    container = pod["containers"][0]
    # A rolling update takes no server away before its successor is ready.
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    labels = kustomize.pod_labels(deployment)
    for kind, field in (("Deployment", "selector"), ("PodDisruptionBudget", "selector")):
        assert only(documents, kind)["spec"][field]["matchLabels"].items() <= labels.items()
    service = only(documents, "Service")
    ports = {p["name"]: p["containerPort"] for p in container["ports"]}
    assert ports == {"grpc": int(config["listen"].rsplit(":", 1)[1]), "metrics": int(config["metrics"].rsplit(":", 1)[1])}
    assert service["spec"]["selector"].items() <= labels.items() and "sessionAffinity" not in service["spec"], "any server answers any call"
    assert all(p["port"] == ports[p["targetPort"]] for p in service["spec"]["ports"])
    assert only(documents, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    # Every name of an argument is the binary's, and each server has its own name in leases.
    given = dict(a.removeprefix("--").split("=", 1) for a in container["args"])
    assert {f"--{name}" for name in given} <= c.server_flags
    name = re.fullmatch(r"\$\((\w+)\)", given["server-id"])[1]
    assert {e["name"]: e["valueFrom"]["fieldRef"]["fieldPath"] for e in container["env"]}[name] == "metadata.name"
    mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
    assert given["config"] == f"{mounts['config']}/server.conf"
    volumes = {v["name"]: v for v in pod["volumes"]}
    assert set(volumes) == set(mounts) and mounts["data"] == "/data"
    assert config["job-store-file"] == f"{mounts['database']}/job-store" and volumes["database"]["secret"]["secretName"] == "ovpress-database"
    assert config["blob-store"].startswith("s3://") and container["envFrom"] == [{"secretRef": {"name": "ovpress-s3", "optional": True}}]
    size = volumes["data"]["emptyDir"]["sizeLimit"]
    resources = container["resources"]
    assert size_bytes(config["cache-bytes"]) <= 0.8 * size_bytes(size) and resources["requests"]["ephemeral-storage"] == size
    assert size_bytes(resources["limits"]["ephemeral-storage"]) > size_bytes(size), "the log needs room as well"
    transfers = int(config["max-transfers"])
    memory = size_bytes(config["total-memory-bytes"]) + (TRANSFER_BYTES + S3_TRANSFER_BYTES) * transfers + BASE_BYTES + BLOCK_BYTES
    assert size_bytes(resources["limits"]["memory"]) == size_bytes(resources["requests"]["memory"]) == memory, f"memory should be {memory // MIB}Mi"
    assert resources["requests"]["cpu"] == config["threads"]
    assert size_bytes(config["default-job-memory-bytes"]) * int(config["max-running"]) <= size_bytes(config["total-memory-bytes"])
    drain = float(config["drain-delay-seconds"]) + float(config["drain-seconds"]) + SHUTDOWN_SECONDS
    assert pod["terminationGracePeriodSeconds"] >= drain + GRACE_MARGIN_SECONDS
    policy = only(documents, "NetworkPolicy")["spec"]
    assert {(p["protocol"], p["port"]) for rule in policy["egress"] for p in rule["ports"]} == {("UDP", 53), ("TCP", 53), ("TCP", 5432), ("TCP", 443)}
    scaler = only(documents, "HorizontalPodAutoscaler")["spec"]
    assert "replicas" not in spec and scaler["scaleTargetRef"]["kind"] == "Deployment" and scaler["minReplicas"] >= 2
    rule = yaml.safe_load((KUBERNETES / "overlays/cluster/adapter-rules.yaml").read_text())["externalRules"][0]
    assert scaler["metrics"][0]["external"]["metric"]["name"] == rule["name"]["as"]
    query = rule["metricsQuery"].replace("<<.Series>>", re.search(r'__name__="([^"]+)"', rule["seriesQuery"])[1]).replace("<<.LabelMatchers>>", "")
    assert c.live.query(query), f"a real Prometheus answers nothing to {query}"


def test_pods_are_restricted(c: Context):
    """Pod Security "restricted", and what we add: a read-only root, no token."""
    for origin, documents in [(o, documents_of(o)) for o in OVERLAYS] + [(n, [d]) for n, d in jobs().items()]:
        for document in documents:
            pod = kustomize.pod_spec(document)
            if document["kind"] == "Namespace":
                assert document["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
            if pod is None:
                continue
            security = pod["securityContext"]
            assert security["runAsNonRoot"] and security["runAsUser"] == security["fsGroup"] == 65532, origin
            assert security["seccompProfile"]["type"] == "RuntimeDefault" and pod["automountServiceAccountToken"] is False, origin
            assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod), origin
            assert all({"configMap", "secret", "persistentVolumeClaim", "emptyDir"} & set(v) for v in pod["volumes"]), origin
            for container in kustomize.containers(document):
                own = container["securityContext"]
                assert own["allowPrivilegeEscalation"] is False and own["readOnlyRootFilesystem"] and own["capabilities"] == {"drop": ["ALL"]}, origin
                assert container["resources"]["limits"]["memory"] and container["resources"]["requests"]["cpu"], origin


def test_the_secured_overlay_is_secure(c: Context):
    documents = documents_of("prod-secured")
    stateful = only(documents, "StatefulSet")
    mounted = [v["secret"]["secretName"] for v in kustomize.pod_spec(stateful)["volumes"] if "secret" in v]
    assert mounted == ["ovpress-tls", "ovpress-tokens"]
    assert not any(d["kind"] == "Secret" for o in OVERLAYS for d in documents_of(o)), "no secret lies in the repository"
    mounts = {m["mountPath"] for m in kustomize.containers(stateful)[0]["volumeMounts"]}
    config = config_map(documents)
    files = {name: path for name, path in config.items() if name in ("tls-cert", "tls-key", "token-file", "quota-file")}
    assert len(files) == 4 and all(str(pathlib.PurePosixPath(p).parent) in mounts for p in files.values()), files
    assert set(only(documents, "ConfigMap")["data"]) == {"server.conf", "quotas.json"}
    assert all("appProtocol" not in d["spec"]["ports"][0] for d in documents if d["kind"] == "Service"), "h2c is plain text"
    text = only(documents, "ConfigMap")["data"]["server.conf"]
    path = c.work / "secured.conf"
    path.write_text(with_secrets(c, text, "prod-secured"))
    with Server(c, f"--config={path}") as server:
        address = f"localhost:{server.address.rsplit(':', 1)[1]}"
        listed = lambda *flags: run(c.ovpress, "list", "--server", address, "--retry-seconds", "0", *flags, env={k: v for k, v in os.environ.items() if not k.startswith("OVPRESS_")})
        tls, token = ("--tls-ca", secrets(c) / "tls.crt"), ("--token-file", secrets(c) / "token")
        done = listed(*tls, *token)
        assert done.returncode == 0, done.stderr
        assert listed(*token).returncode == 1, "plain text is taken"
        assert "who calls" in listed(*tls).stderr
        # On the address of the container nobody needs --insecure-listen.
        taken = run(c.server, f"--config={path}", f"--data-dir={server.folder / 'data'}", "--listen=0.0.0.0:0", "--metrics=127.0.0.1:0")
        assert "another process" in taken.stderr, taken.stderr


def test_job_templates_run(c: Context):
    """The templates' own arguments, with /models mapped to a folder."""
    for name, document in jobs().items():
        with Server(c) as server:
            container = kustomize.containers(document)[0]
            assert container["command"] == ["/usr/bin/ovpress"] and container["volumeMounts"][0]["mountPath"] == "/models"
            models = c.work / name
            shutil.copytree(MODELS / "llama", models)
            environment = {e["name"]: server.address for e in container.get("env", [])}
            arguments = [a.replace("/models", str(models)) for a in container["args"]]
            answer = run(c.ovpress, *arguments, env={**os.environ, **environment})
            assert answer.returncode == 0, f"{name}: {answer.stderr}"
            output = next(a for a in arguments if a.startswith("--output=")).removeprefix("--output=")
            assert pathlib.Path(output).with_suffix(".bin").stat().st_size > 0
            on_server = "ovpress_jobs_total{" in server.metrics()
            assert on_server == ("OVPRESS_SERVER" in environment), f"{name}: on the server or not"


# --- image and compose ---


def dockerfile_instructions() -> dict[str, list[str]]:
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    instructions: dict[str, list[str]] = {}
    for line in text.splitlines():
        match = re.match(r"([A-Z]+) +(.*)", line)
        if match:
            instructions.setdefault(match[1], []).append(match[2])
    return instructions


def test_image_commands_exist(c: Context):
    instructions = dockerfile_instructions()
    assert instructions["USER"] == ["65532:65532"] and instructions["VOLUME"] == ["/data"]
    entry, arguments = json.loads(instructions["ENTRYPOINT"][-1]), json.loads(instructions["CMD"][-1])
    assert entry[0] == "/usr/bin/ovpress-server" and "--data-dir=/data" in entry
    given = {a.split("=")[0] for a in entry[1:] + arguments}
    assert given <= c.server_flags, given - c.server_flags
    listen = dict(a.split("=") for a in arguments if "=" in a)
    assert {listen["--listen"].rsplit(":", 1)[1], listen["--metrics"].rsplit(":", 1)[1]} == set(instructions["EXPOSE"][0].split())
    # The health check's own words against a real server: 0 while it runs, 1 before and after.
    words = json.loads(re.search(r"CMD +(\[.*\])", instructions["HEALTHCHECK"][-1])[1])
    assert words[0] == "/usr/bin/ovpress-server" and next(a for a in entry if a.startswith("--data-dir=")) in words
    secured = [f"--tls-cert={secrets(c) / 'tls.crt'}", f"--tls-key={secrets(c) / 'tls.key'}", f"--token-file={secrets(c) / 'tokens.json'}"]
    for access in ([], secured, [*secured, f"--tls-client-ca={secrets(c) / 'tls.crt'}"]):
        with Server(c, *access) as server:
            command = [c.server, *[w.replace("=/data", f"={server.folder / 'data'}") for w in words[1:]]]
            for environment in ({}, {"http_proxy": "http://127.0.0.1:1"}):
                answer = run(*command, env={**os.environ, **environment})
                assert answer.returncode == 0 and answer.stdout == "ready\n", (access, answer.stderr)
            assert server.stop() == 0
            answer = run(*command)
            assert answer.returncode == 1 and "/readyz" in answer.stderr and answer.stderr.count("\n") == 1, answer.stderr
    answer = run(c.server, "health", f"--data-dir={c.work / 'none'}")
    assert answer.returncode == 1 and "no server has been ready" in answer.stderr and answer.stderr.count("\n") == 1, answer.stderr
    config = c.work / "health.conf"
    config.write_text(f"data-dir={c.work / 'none'}\n")
    assert str(c.work / "none") in run(c.server, "health", f"--config={config}").stderr, "the server's own configuration will do"
    stages = [line for line in instructions["FROM"]]
    assert stages[-1] == "scratch" and "RUN" not in (ROOT / "Dockerfile").read_text().split("FROM scratch")[1], "the image has no shell to run anything"
    for name in ("title", "description", "licenses", "version", "revision", "created", "base.name", "base.digest"):
        assert f"org.opencontainers.image.{name}=" in instructions["LABEL"][-1]


def test_image_scripts(c: Context):
    for script in ("scripts/build-image", "scripts/test-image", "deploy/image/make-rootfs"):
        assert os.access(ROOT / script, os.X_OK), script
        answer = run("bash", "-n", ROOT / script)
        assert answer.returncode == 0, answer.stderr
    used = set(re.findall(r"--build-arg \"(\w+)=", (ROOT / "scripts/build-image").read_text()))
    declared = {a.split("=")[0] for a in dockerfile_instructions()["ARG"]}
    assert used == {"BASE", "BASE_DIGEST", "SOURCE_DATE_EPOCH", "VERSION", "REVISION", "CREATED"} and used <= declared, used ^ declared
    assert run(ROOT / "scripts/build-image", "--nonsense").returncode == 2


def test_compose(c: Context):
    folder = DEPLOY / "compose"
    compose = yaml.safe_load((folder / "compose.yaml").read_text())
    config = config_of((folder / "server.conf").read_text())
    server = compose["services"]["ovpress"]
    assert {a.split("=")[0] for a in server["command"]} <= c.server_flags
    assert server["read_only"] and server["cap_drop"] == ["ALL"]
    memory = size_bytes(config["total-memory-bytes"]) + TRANSFER_BYTES * int(config["max-transfers"]) + BASE_BYTES
    assert size_bytes(server["mem_limit"]) == memory, f"should be {memory // MIB}m"
    grace = int(server["stop_grace_period"].removesuffix("s"))
    assert grace >= float(config["drain-delay-seconds"]) + float(config["drain-seconds"]) + SHUTDOWN_SECONDS + GRACE_MARGIN_SECONDS
    for name, service in compose["services"].items():
        assert service["image"].count(":") == 1 and not service["image"].endswith(":latest"), f"{name}: a version"
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name}: {port} is open to the network"
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert (folder / source).exists() if source.startswith(".") else source in compose["volumes"], f"{name}: {volume}"
    prometheus = yaml.safe_load((PROMETHEUS / "prometheus.yaml").read_text())
    job = prometheus["scrape_configs"][0]
    assert job["job_name"] == "ovpress" and job["static_configs"][0]["targets"] == [f"ovpress:{config['metrics'].rsplit(':', 1)[1]}"]
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"][0]
    assert source["url"] == "http://prometheus:9090" and "prometheus" in compose["services"]
    provider = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/ovpress.yaml").read_text())["providers"][0]
    assert f"../grafana/dashboards:{provider['options']['path']}:ro" in compose["services"]["grafana"]["volumes"]
    answer = run(c.promtool, "check", "config", PROMETHEUS / "prometheus.yaml")
    assert answer.returncode == 0, answer.stderr


# --- rules, dashboard, documents ---


def groups() -> list[dict]:
    return [g for name in ("recording.yaml", "alerts.yaml") for g in yaml.safe_load((PROMETHEUS / name).read_text())["groups"]]


def records() -> dict[str, str]:
    return {r["record"]: r["expr"] for g in groups() for r in g["rules"] if "record" in r}


def alerts() -> dict[str, dict]:
    return {r["alert"]: r for g in groups() for r in g["rules"] if "alert" in r}


def prometheus_rule() -> str:
    head = "# Written by `tests/deploy/run.py --update` from deploy/prometheus/*.yaml; edit those.\n"
    return head + yaml.safe_dump(
        {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule",
         "metadata": {"name": "ovpress", "labels": {"app.kubernetes.io/name": "ovpress"}}, "spec": {"groups": groups()}},
        sort_keys=False, width=120)


def metric_names(text: str) -> set[str]:
    """Names of ours in an expression, those of recorded series left out."""
    return set(re.findall(r"(?<![\w:])(?:ovpress|process)_\w+(?!:)\b", text))


def dashboard_queries() -> list[tuple[str, str]]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [(p["title"], t["expr"]) for p in panels for t in p.get("targets", [])]
    assert len(queries) > 30
    return queries


def test_rules(c: Context):
    for command in (("check", "rules", PROMETHEUS / "recording.yaml", PROMETHEUS / "alerts.yaml"), ("test", "rules", PROMETHEUS / "tests.yaml")):
        answer = run(c.promtool, *command)
        assert answer.returncode == 0, answer.stdout + answer.stderr
    # Each alert fires in the tests; each recorded series is used somewhere.
    fired = {t["alertname"] for u in yaml.safe_load((PROMETHEUS / "tests.yaml").read_text())["tests"] for t in u.get("alert_rule_test", []) if t["exp_alerts"]}
    assert fired == set(alerts()), fired ^ set(alerts())
    readers = " ".join(r["expr"] for r in alerts().values()) + " ".join(e for _, e in dashboard_queries()) + (KUBERNETES / "components/autoscaling/adapter-rules.yaml").read_text()
    tested = (PROMETHEUS / "tests.yaml").read_text()
    for name in records():
        assert name in readers or name in tested, f"nothing reads {name}"
    assert RULES.read_text() == prometheus_rule(), "run tests/deploy/run.py --update"


def test_each_alert_has_a_runbook(c: Context):
    text = (ROOT / "docs/runbooks.md").read_text()
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    named = {name for name in sections if name.startswith("Ovpress")}
    assert named == set(alerts()), named ^ set(alerts())
    for name, rule in alerts().items():
        assert rule["annotations"]["runbook"] == f"docs/runbooks.md#{name.lower()}", name
        assert rule["labels"]["severity"] in ("critical", "warning") and rule["annotations"]["summary"]
        for part in ("**Means:**", "**Look:**", "**Do:**"):
            assert part in sections[name], f"{name} lacks {part}"


def test_dashboard_is_well_formed(c: Context):
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    assert len({p["id"] for p in panels}) == len(panels)
    assert {v["name"] for v in dashboard["templating"]["list"]} == {"datasource", "instance"}
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= 24, f"{panel['title']} lies on another"
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["description"] and panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
        for target in panel["targets"]:
            assert "$instance" in target["expr"], f"{panel['title']} does not follow the choice of the server"


def of_cluster(expression: str) -> bool:
    """Asks for what only servers on shared stores have; tests/cluster/run.py looks at a real one's page."""
    return bool(re.search(r"ovpress_(?:database|s3)_", expression)) and " unless ovpress_database_connections" not in expression


def test_every_metric_exists(c: Context):
    page = c.live.server.metrics()
    offered = set(re.findall(r"^(\w+)(?:\{| )", page, re.M))
    assert len(offered) > 20
    wanted = {f"rule {name}": e for name, e in records().items()} | {f"alert {name}": r["expr"] for name, r in alerts().items()}
    wanted |= {f"panel {title} {i}": e for i, (title, e) in enumerate(dashboard_queries())}
    for origin, expression in wanted.items():
        missing = {n for n in metric_names(expression) if not re.match("ovpress_(?:database|s3)_", n)} - offered
        assert not missing, f"{origin}: the server has no {missing}"
        for name in re.findall(r"ovpress:[\w:]+", expression):
            assert name in records(), f"{origin}: nothing records {name}"
    # The labels and values that the rules ask for.
    for piece in ('outcome="failed"', 'outcome="succeeded"', 'phase="total"', 'type="reject"', 'direction="in"', 'direction="upload"', 'code="OK"', 'reason="max_xml_bytes"', 'method="google.bytestream.ByteStream/Write"'):
        assert piece in page, piece
    # What the server offers and nobody watches should be a decision.
    seen = set().union(*map(metric_names, wanted.values()))
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in offered}
    unseen = families - {re.sub(r"_(bucket|sum|count)$", "", name) for name in seen}
    assert not unseen, f"nobody watches {unseen}"


def test_every_panel_shows_data(c: Context):
    live = c.live
    for title, expression in dashboard_queries():
        expression = expression.replace("$__rate_interval", "30s").replace("$instance", ".*")
        if of_cluster(expression):
            continue
        assert live.query(expression), f"{title}: no data for {expression}"


def test_rules_run_in_prometheus(c: Context):
    found = {}
    for group in c.live.get("rules")["groups"]:
        for rule in group["rules"]:
            found[rule["name"]] = rule
            assert rule["health"] == "ok", f"{rule['name']}: {rule.get('lastError')}"
    assert set(found) == set(records()) | set(alerts())
    # Nothing that warns of a broken server may burn on this one; the load does
    # provoke failed jobs and refusals.
    burning = {name for name, rule in found.items() if rule["type"] == "alerting" and rule["state"] != "inactive"}
    assert burning <= {"OvpressJobsFailing", "OvpressRequestsRefused"}, burning
    assert "OvpressJobsFailing" in burning, "half of the jobs fail in this test"
    for name in records():
        # No transfer's error and no code of ours: absent is right.
        if name != "ovpress:rpc_errors:ratio5m" and (name == "ovpress:memory_model:bytes" or not of_cluster(records()[name])):
            assert c.live.query(name), f"{name} has no value"


def test_documents_name_what_exists(c: Context):
    page = c.live.server.metrics()
    flags = set(c.server_flags)
    for subcommand in re.findall(r"^  (\w+) +[A-Z]", run(c.ovpress, "--help").stdout, re.M):
        flags |= c.command_flags(subcommand)
    for path in DOCUMENTS:
        text = path.read_text()
        # Flags of other programs stand in code that names them first.
        own = "\n".join(line for line in text.splitlines() if not re.search(r"kubectl|docker|promtool|journalctl|curl|rsync|sqlite3|scripts/|tests/deploy|bench/|grep|/usr/bin/time|df |cp -", line))
        unknown = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", own)) - flags
        assert not unknown, f"{path.name}: {unknown}"
        for name in metric_names(text):
            assert name in page, f"{path.name}: no metric {name}"
        for name in re.findall(r"ovpress:\w+:\w+", text):
            assert name in records(), f"{path.name}: nothing records {name}"
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (path.parent / link).exists(), f"{path.name}: {link}"
        for link in re.findall(r"`((?:deploy|docs|scripts|tests)/[\w./-]+)`", text):
            assert (ROOT / link).exists(), f"{path.name}: {link}"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=pathlib.Path, help="a build directory, e.g. build/ci")
    parser.add_argument("--update", action="store_true", help="write what is derived and stop")
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    if arguments.update:
        RULES.write_text(prometheus_rule())
        return 0
    if arguments.build is None:
        parser.error("--build is missing")
    with tempfile.TemporaryDirectory(prefix="ovpress-deploy-") as folder:
        c = Context(arguments.build.resolve(), pathlib.Path(folder))
        try:
            return run_tests(globals(), c, arguments.names)
        finally:
            c.close()


if __name__ == "__main__":
    sys.exit(main())
