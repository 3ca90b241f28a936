#!/usr/bin/env python3
"""Tests of the Python client, as users get it: the wheel is built, installed
into new virtual environments and run against the real server.

  client/python/tests/run.py --server-binary build/ci/server/ovpress-server \\
      --ovpress build/ci/client/cli/ovpress [--venvs DIR] [--openvino-python PY] [NAME...]

Two environments: one with the wheel and what it asks for, one with the packages
of requirements.txt beside it. --venvs keeps them for the next run.
--openvino-python is an interpreter with openvino and nncf; with it the tests
that need them run too. The last line is "N passed, N failed"."""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import venv

HERE = pathlib.Path(__file__).resolve().parent
PACKAGE = HERE.parent


def run(*command: object) -> None:
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}")


def build_wheel(work: pathlib.Path) -> pathlib.Path:
    # From a copy: setuptools would leave folders in the checkout, and take old files from them.
    source = work / "source"
    shutil.copytree(PACKAGE, source, ignore=shutil.ignore_patterns("build", "dist", "*.egg-info", "__pycache__"))
    run(sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-deps", "-w", work, source)
    (wheel,) = work.glob("*.whl")
    return wheel


def make_environment(folder: pathlib.Path, wheel: pathlib.Path, requirements: pathlib.Path | None) -> pathlib.Path:
    """A virtual environment that holds this very wheel; returns its python."""
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    text = requirements.read_bytes() if requirements else b""
    stamp = folder / f"ready-{hashlib.sha256(text).hexdigest()[:16]}"
    if not stamp.exists():
        venv.create(folder, with_pip=True, clear=True)
        run(*pip, wheel, *(["-r", requirements] if requirements else []))
        stamp.touch()
    else:
        run(*pip, "--force-reinstall", "--no-deps", wheel)
    return python


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server-binary", type=pathlib.Path, required=True)
    parser.add_argument("--ovpress", type=pathlib.Path, required=True)
    parser.add_argument("--venvs", type=pathlib.Path, help="keep the virtual environments here")
    parser.add_argument("--openvino-python", type=pathlib.Path, help="an interpreter with openvino and nncf")
    parser.add_argument("names", nargs="*", help="only these tests")
    arguments = parser.parse_args()
    passed = failed = 0
    with tempfile.TemporaryDirectory(prefix="ovpress-pyclient-") as folder:
        work = pathlib.Path(folder)
        venvs = (arguments.venvs or work / "venvs").resolve()
        venvs.mkdir(parents=True, exist_ok=True)
        wheel = build_wheel(work)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            plain = pool.submit(make_environment, venvs / "plain", wheel, None)
            crowded = pool.submit(make_environment, venvs / "crowded", wheel, HERE / "requirements.txt")
            groups = [("plain", plain.result(), {}), ("crowded", crowded.result(), {})]
        if arguments.openvino_python:
            # This interpreter is not ours to install into: the wheel is put on its path.
            site = work / "site"
            run(sys.executable, "-m", "zipfile", "-e", wheel, site)
            groups.append(("openvino", arguments.openvino_python.absolute(), {"PYTHONPATH": str(site)}))
        for group, python, environment in groups:
            # -P or -I would hide PYTHONPATH; the suite's folder holds no package, so nothing shadows the wheel.
            command = [
                python,
                HERE / "suite.py",
                f"--group={group}",
                f"--server-binary={arguments.server_binary.resolve()}",
                f"--ovpress={arguments.ovpress.resolve()}",
                f"--wheel={wheel}",
                *arguments.names,
            ]
            clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "OVPRESS_"))}
            process = subprocess.Popen(
                [str(part) for part in command], stdout=subprocess.PIPE, text=True, cwd=work, env={**clean, **environment}
            )
            last = ""
            assert process.stdout is not None
            for line in process.stdout:
                if re.fullmatch(r"\d+ passed, \d+ failed\n", line):
                    last = line
                else:
                    print(f"[{group}] {line}", end="", flush=True)
            process.wait()
            counts = [int(number) for number in re.findall(r"\d+", last)]
            if not counts or (process.returncode != 0 and counts[1] == 0):
                print(f"[{group}] ended with exit code {process.returncode}")
                counts = [counts[0] if counts else 0, 1]
            passed, failed = passed + counts[0], failed + counts[1]
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
