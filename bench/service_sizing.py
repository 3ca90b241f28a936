#!/usr/bin/env python3
"""What the server takes: memory, CPU and disk, for docs/operations.md.

  build/ci/bench/make_ir MODEL --layers 18          # once; 2.1 GB of f16 weights
  bench/service_sizing.py --build build/ci --model MODEL.xml --work DIR

DIR needs about four times the model. Prints one line for each step: seconds, CPU
seconds of the server, its peak of resident memory since its start, and the bytes
of its store. Every step has a server of its own, except where it says "then"."""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

TICKS = os.sysconf("SC_CLK_TCK")


class Server:
    def __init__(self, binary: pathlib.Path, folder: pathlib.Path, *flags: str):
        self.data, ports = folder / "data", folder / "ports"
        ports.unlink(missing_ok=True)
        begin = time.monotonic()
        self.process = subprocess.Popen(
            [binary, "--listen=127.0.0.1:0", "--metrics=127.0.0.1:0", f"--data-dir={self.data}", f"--port-file={ports}", *flags],
            stderr=(folder / "log").open("ab"))
        while not ports.exists():
            assert self.process.poll() is None, (folder / "log").read_text()[-500:]
            time.sleep(0.002)
        self.start_seconds = time.monotonic() - begin
        self.address = "127.0.0.1:" + ports.read_text().split()[0]

    def cpu(self) -> float:
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def peak_mib(self) -> float:
        text = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.split("VmHWM:")[1].split()[0]) / 1024

    def disk_mb(self) -> float:
        used = subprocess.run(["du", "-s", "--block-size=1", self.data], capture_output=True, text=True, check=True)
        return int(used.stdout.split()[0]) / 1e6

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=120)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--clients", type=int, default=8, help="transfers at a time")
    arguments = parser.parse_args()
    server_binary = arguments.build / "server/ovpress-server"
    ovpress = arguments.build / "client/cli/ovpress"
    work = pathlib.Path(tempfile.mkdtemp(dir=arguments.work))
    weights = arguments.model.with_suffix(".bin")
    print(f"model: {weights.stat().st_size / 1e6:.0f} MB of weights, {arguments.model.stat().st_size / 1e6:.2f} MB of XML")
    print("| step | seconds | CPU seconds | peak MiB | store MB |\n|---|---|---|---|---|")

    def folder() -> pathlib.Path:
        return pathlib.Path(tempfile.mkdtemp(dir=work))

    def step(name: str, server: Server, action) -> None:
        begin, cpu = time.monotonic(), server.cpu()
        action()
        took = time.monotonic() - begin
        print(f"| {name} | {took:.1f} | {server.cpu() - cpu:.1f} | {server.peak_mib():.0f} | {server.disk_mb():.0f} |", flush=True)

    def call(*command) -> None:
        subprocess.run([str(c) for c in command], check=True, stdout=subprocess.DEVNULL)

    def remote(server: Server, model: pathlib.Path, out: pathlib.Path, *flags: str):
        return lambda: call(ovpress, "compress", model, "-o", out, "--quiet", "--server", server.address, *flags)

    # Idle, one job of each kind, the same again out of the cache.
    server = Server(server_binary, folder())
    step("idle", server, lambda: time.sleep(2))
    out = work / "out.xml"
    step("upload, int8_asym, download", server, remote(server, arguments.model, out, "--mode=int8_asym"))
    step("then the same again: nothing sent, result cached, download", server, remote(server, arguments.model, out, "--mode=int8_asym"))
    step("then int4_sym, groups of 128", server, remote(server, arguments.model, out, "--mode=int4_sym", "--group-size=128"))
    step("then int4_asym, groups of 64, ratio 0.8", server, remote(server, arguments.model, out, "--mode=int4_asym", "--group-size=64", "--ratio=0.8"))

    def several() -> None:
        running = [subprocess.Popen([str(ovpress), "submit", str(arguments.model), f"--mode={mode}", "--server", server.address], stdout=subprocess.PIPE, text=True) for mode in ("nf4", "int8_sym", "fp8_e4m3", "mxfp8_e4m3")]
        names = [p.communicate()[0].strip() for p in running]
        for name in names:
            call(ovpress, "watch", name, "--server", server.address)

    step("then four jobs at a time", server, several)
    server.stop()
    data = server.data
    again = Server(server_binary, data.parent)
    print(f"start on that store: {again.start_seconds:.2f} s")

    # Back-up: the stopped server's folder, copied, started elsewhere.
    again.stop()
    copy = folder()
    begin = time.monotonic()
    call("cp", "-a", data, copy / "data")
    print(f"copy of the data folder: {time.monotonic() - begin:.1f} s")
    restored = Server(server_binary, copy)
    listed = subprocess.run([ovpress, "list", "--server", restored.address], capture_output=True, text=True, check=True).stdout
    operation = next(word for word in listed.split() if word.startswith("operations/"))
    call(ovpress, "download", operation, "-o", work / "restored.xml", "--server", restored.address)
    print(f"restored: {listed.count('operations/')} jobs, one result downloaded")
    restored.stop()
    shutil.rmtree(data.parent)
    shutil.rmtree(copy)

    # Many transfers at a time, each of a model of its own: a part of the weights
    # is not enough for a job, so these are uploads that end in a refused job.
    parts = folder()
    part = 256 << 20
    text = arguments.model.read_text()
    with weights.open("rb") as source:
        for i in range(arguments.clients):
            (parts / f"{i}.xml").write_text(text)
            source.seek(i * 4096)
            (parts / f"{i}.bin").write_bytes(source.read(part))
    server = Server(server_binary, folder(), f"--max-transfers={arguments.clients}", f"--max-transfers-per-owner={arguments.clients}")

    def uploads() -> None:
        running = [subprocess.Popen([str(ovpress), "submit", str(parts / f"{i}.xml"), "--server", server.address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for i in range(arguments.clients)]
        for process in running:
            process.wait()

    step(f"{arguments.clients} uploads of 256 MiB at a time", server, uploads)
    server.stop()
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
