#!/usr/bin/env python3
"""The system tests against the server in a container: the image's own files as
a read-only root, user 65532, no capabilities, no new privileges, and the
shipped seccomp profile, which runc or crun translates and the kernel enforces.

  tests/access/contained.py --build build/ci [--runtime runc|crun] [NAME...]

First the tests as they are; then some of them once more under strace, to list
every system call that the profile refused. Needs root. Without
a runtime that can start a container here it says why and counts nothing as
failed. The last line is "N passed, N failed"."""

from __future__ import annotations

import argparse
import collections
import ctypes
import importlib.util
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT / "tests/integration"), str(ROOT / "client/python/src")]

import harness  # noqa: E402

PROFILE = ROOT / "deploy/seccomp/ovpress.json"
USER = 65532
PR_SET_CHILD_SUBREAPER = 36
# Refused on purpose, and the C library goes another way.
EXPECTED = {("clone3", "ENOSYS")}
TRACED = ("test_job_equals_local_run", "test_compress_stream_equals_local_run", "test_upload_resumes", "test_json_log_has_the_job_on_its_lines")
ACCESS = ("test_tls_and_mutual_tls", "test_jwts", "test_two_identities_see_nothing_of_each_other")


def seccomp_of(profile: dict) -> dict:
    """docker's form of a profile as that of the OCI runtime specification."""
    architectures = [a for entry in profile["archMap"] for a in (entry["architecture"], *entry["subArchitectures"])]
    rules = [{key: value for key, value in rule.items() if key != "comment"} for rule in profile["syscalls"]]
    return {"defaultAction": profile["defaultAction"], "defaultErrnoRet": profile["defaultErrnoRet"], "architectures": architectures, "syscalls": rules}


class Runtime:
    def __init__(self, name: str, root: pathlib.Path, work: pathlib.Path):
        self.name, self.root, self.work = name, root, work
        self.command = [name, "--root", str(work / "state")]
        if name == "crun":
            self.command.append("--cgroup-manager=disabled")
        self.count, self.trace = 0, False
        self.traces: list[pathlib.Path] = []

    def bundle(self, arguments: list[str], writable: str, profile: dict | None = None) -> tuple[str, pathlib.Path]:
        self.count += 1
        folder = self.work / f"bundle{self.count}"
        folder.mkdir()
        bind = lambda path, *options: {"destination": path, "type": "bind", "source": path, "options": ["rbind", *options]}  # noqa: E731
        config = {
            "ociVersion": "1.0.2",
            "process": {
                "terminal": False,
                "user": {"uid": USER, "gid": USER},
                "args": arguments,
                "env": ["PATH=/usr/bin"],
                "cwd": "/",
                "capabilities": {kind: [] for kind in ("bounding", "effective", "inheritable", "permitted", "ambient")},
                "noNewPrivileges": True,
            },
            "root": {"path": str(self.root), "readonly": True},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}, bind("/dev/null"), bind(writable, "rw")],
            "linux": {
                # The network is the host's: the tests call by its loopback.
                "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")],
                "seccomp": seccomp_of(profile or json.loads(PROFILE.read_text())),
                "readonlyPaths": ["/proc/sys"],
            },
        }
        (folder / "config.json").write_text(json.dumps(config))
        return f"ovpress-test-{os.getpid()}-{self.count}", folder

    def why_not(self) -> str:
        """Empty if a container starts here."""
        if not shutil.which(self.name):
            return f"{self.name} is not installed"
        with tempfile.TemporaryDirectory(dir=self.work) as writable:
            name, folder = self.bundle(["/usr/bin/ovpress-server", "--version"], writable)
            done = subprocess.run([*self.command, "run", "--bundle", folder, name], capture_output=True, text=True)
        return "" if done.returncode == 0 and done.stdout.startswith("ovpress ") else f"{self.name}: {(done.stderr or done.stdout).strip()[-300:]}"


class Contained:
    """One container; what of subprocess.Popen the harness uses. `pid` is that of
    the server, whose parent we are: the runtime leaves it to the next subreaper."""

    def __init__(self, runtime: Runtime, command: list[str], stderr):
        self.runtime, self.returncode, self._tracer = runtime, None, None
        writable = pathlib.Path(next(a for a in command if a.startswith("--data-dir=")).split("=", 1)[1]).parent
        for path in [*writable.parents, writable]:
            if str(path).startswith(tempfile.gettempdir() + "/"):
                path.chmod(0o777)
        for path in writable.rglob("*"):
            path.chmod(path.stat().st_mode | 0o644)
        self.name, folder = runtime.bundle(["/usr/bin/ovpress-server", *command[1:]], str(writable))
        pid_file = folder / "pid"
        subprocess.run([*runtime.command, "create", "--bundle", folder, "--pid-file", pid_file, self.name], check=True, stdout=subprocess.DEVNULL, stderr=stderr)
        self.pid = int(pid_file.read_text())
        if runtime.trace:
            trace = folder / "trace"
            runtime.traces.append(trace)
            self._tracer = subprocess.Popen(["strace", "-f", "-q", "--status=failed", "-o", trace, "-p", str(self.pid)], stderr=subprocess.DEVNULL)
            harness.wait_until(lambda: re.search(r"TracerPid:\t[1-9]", pathlib.Path(f"/proc/{self.pid}/status").read_text()))
        subprocess.run([*runtime.command, "start", self.name], check=True, stderr=stderr)

    def _ended(self, status: int) -> int:
        self.returncode = os.waitstatus_to_exitcode(status)
        if self._tracer:
            self._tracer.wait()
        subprocess.run([*self.runtime.command, "delete", "--force", self.name], stderr=subprocess.DEVNULL)
        return self.returncode

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._ended(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = time.monotonic() + (timeout if timeout is not None else 1e9)
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.name, timeout)
            time.sleep(0.005)
        return self.returncode

    def send_signal(self, number: int):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def terminate(self):
        self.send_signal(signal.SIGTERM)


def confinement_of(pid: int) -> dict[str, str]:
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)


def check_confinement(runtime: Runtime, work: pathlib.Path, build: pathlib.Path):
    """It is what we say it is, or the tests after it show nothing."""
    c = harness.Context(build, work, 0)
    with c.server() as server:
        have = confinement_of(server.process.pid)
        assert have["NoNewPrivs"] == "1" and have["Seccomp"] == "2" and have["Uid"].split() == [str(USER)] * 4, have
        assert all(int(have[f"Cap{kind}"], 16) == 0 for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")), have
        mounts = pathlib.Path(f"/proc/{server.process.pid}/mountinfo").read_text().splitlines()
        writable = {m.split()[4] for m in mounts if "rw" in m.split()[5].split(",")} - {"/proc", "/dev/null"}
        assert writable == {str(work)}, writable
        assert server.stop() == 0
    # The filter bites: without one call that every start needs there is no start.
    profile = json.loads(PROFILE.read_text())
    for rule in profile["syscalls"]:
        rule["names"] = [n for n in rule["names"] if n != "epoll_ctl"] or ["exit"]
    writable = pathlib.Path(tempfile.mkdtemp(dir=work))
    writable.chmod(0o777)
    name, folder = runtime.bundle(["/usr/bin/ovpress-server", "--listen=127.0.0.1:0", "--metrics=127.0.0.1:0", f"--data-dir={writable}/data"], str(writable), profile)
    done = subprocess.run([*runtime.command, "run", "--bundle", folder, name], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0, "a server without epoll_ctl started"


def refused(traces: list[pathlib.Path]) -> collections.Counter:
    """By the profile: what it allows whatever the arguments are, the kernel refused."""
    rules = json.loads(PROFILE.read_text())["syscalls"]
    allowed = {name for rule in rules if rule["action"] == "SCMP_ACT_ALLOW" and "args" not in rule for name in rule["names"]}
    found: collections.Counter = collections.Counter()
    for trace in traces:
        # What the runtime's own process does before it becomes the server is not ours.
        text = trace.read_text(errors="replace").split("execve(\"/usr/bin/ovpress-server\"", 1)[-1]
        for line in text.splitlines():
            match = re.search(r"(\w+)(?:\(| resumed>).* = -1 (EPERM|ENOSYS)\b", line)
            if match and match[1] not in allowed:
                found[match[1], match[2]] += 1
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--runtime", choices=("runc", "crun"))
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    build = arguments.build.resolve()
    passed = failed = 0

    def skip(reason: str) -> int:
        print(f"skipped: {reason}\n0 passed, 0 failed")
        return 0

    if os.geteuid() != 0:
        return skip("only root can start a container with another user")
    with tempfile.TemporaryDirectory(prefix="ovpress-contained-") as folder:
        work = pathlib.Path(folder)
        root = work / "root"
        made = subprocess.run([ROOT / "deploy/image/make-rootfs", root, build, build / "client/cli/ovpress", build / "server/ovpress-server"], capture_output=True, text=True)
        assert made.returncode == 0, made.stderr[-2000:]
        reasons = []
        for name in [arguments.runtime] if arguments.runtime else ["runc", "crun"]:
            runtime = Runtime(name, root, work)
            reasons.append(runtime.why_not())
            if not reasons[-1]:
                break
        else:
            return skip("; ".join(reasons))
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        harness.Server.launch = staticmethod(lambda command, stderr: Contained(runtime, command, stderr))
        (work / "stubs").mkdir()
        harness.generate_stubs(work / "stubs")
        def module(path: pathlib.Path, name: str):
            spec = importlib.util.spec_from_file_location(name, path)
            loaded = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(loaded)
            return loaded

        system = module(ROOT / "tests/integration/run.py", "system_tests")
        access = module(ROOT / "tests/access/run.py", "access_tests")
        tests = [("confinement", lambda c: check_confinement(runtime, c.work, build), harness.Context)]
        tests += [(n, t, harness.Context) for n, t in vars(system).items() if n.startswith("test_")]
        tests += [(n, getattr(access, n), access.Context) for n in ACCESS]
        traced = [(f"{n} under strace", vars(system)[n], harness.Context) for n in TRACED] if shutil.which("strace") else []

        def one(name, test, kind):
            nonlocal passed, failed
            if arguments.names and name.split()[0] not in arguments.names:
                return
            begin = time.monotonic()
            try:
                folder = pathlib.Path(tempfile.mkdtemp(dir=work))
                test(kind(build, folder, arguments.kills, 5 if runtime.trace else 2) if kind is harness.Context else kind(build, folder))
                passed += 1
                print(f"ok   {name} ({time.monotonic() - begin:.1f} s)", flush=True)
            except Exception:
                failed += 1
                print(f"FAIL {name}\n{traceback.format_exc()}", flush=True)

        print(f"{runtime.name}: root {root} read-only, user {USER}, {PROFILE.relative_to(ROOT)}", flush=True)
        for entry in tests:
            one(*entry)
        runtime.trace = True
        for entry in traced:
            one(*entry)
        if runtime.traces:
            denied = refused(runtime.traces)
            for (call, error), count in sorted(denied.items()):
                print(f"     {count:6} {call}: {error}{'' if (call, error) in EXPECTED else '  <- not expected'}")
            if set(denied) <= EXPECTED and denied:
                passed += 1
                print("ok   no system call was refused but those that are meant to be")
            else:
                failed += 1
                print("FAIL refused system calls: add them to the profile, or to EXPECTED with a reason")
        elif not arguments.names:
            print("     (no strace here: what was refused is not listed)")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
