#!/usr/bin/env python3
"""The table of docs/performance.md: what is measured, its goal, and whether it is met.

  bench/table.py --work DIR                      about three minutes; needs 4 GB of disk
  bench/table.py --work DIR --huge               with a 20.8 GB model (sparse; its output takes 12 GB)
  bench/table.py --work DIR --nncf --llama       beside NNCF and llama.cpp, if they are installed
  bench/table.py --work DIR --quick              a minute, small models: does it all still run?

Engine and copy limit take turns (engine_bench says what the limit is); the other contestants run after them, on the same files. Nothing is
reported before it was checked: engine_bench compares the bytes of all runs; of the command line's outputs the digest must be the same on
one thread and on all; NNCF's constants must equal ours. Exit code 1 if a check fails; a missed goal is only reported.
"""
import argparse
import hashlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
# Mode, its options on the command line, and the goal: a multiple of the copy limit.
MODES = {
    "int8_asym": 2.0,
    "int8_sym": 2.0,
    "int4_sym g128": 2.0,
    "int4_asym g64": 2.0,
    "int4_asym g64 ratio 0.8": 3.5,
    "nf4 g64": 3.0,
    "fp4 g64": 3.0,
    "fp8_e4m3 g64": 3.0,
    "mxfp4": 3.0,
    "mxfp8_e4m3": 3.0,
    "nvfp4": 3.0,
    "cb4": 3.0,
}
MIB = 1 << 20


def run(command):
    """Seconds and peak resident bytes (mapped pages included) of a program."""
    start = time.monotonic()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(str(part) for part in command)}: exit code {process.returncode}")
    return time.monotonic() - start, usage.ru_maxrss * 1024


def output_of(command):
    return subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True).stdout


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Table:
    def __init__(self, arguments):
        self.work = pathlib.Path(arguments.work)
        self.work.mkdir(parents=True, exist_ok=True)
        build = pathlib.Path(arguments.build)
        self.ovpress = build / "client/cli/ovpress"
        self.make_ir = build / "bench/make_ir"
        self.engine_bench = build / "bench/engine_bench"
        self.quick = arguments.quick
        self.rounds = 2 if arguments.quick else arguments.rounds
        self.rows = []
        self.machine = {}

    def row(self, what, value, unit, goal=None, note=""):
        met = None if goal is None else value <= goal
        self.rows.append({"what": what, "value": value, "unit": unit, "goal": goal, "met": met, "note": note})
        shown = "" if goal is None else f"  goal {goal:g}: {'met' if met else 'MISSED'}"
        print(f"{what:<58} {value:>9.3f} {unit:<14}{shown}{'  ' + note if note else ''}", flush=True)

    def model(self, name, layers, *options):
        prefix = self.work / name
        if not (self.work / f"{name}.xml").exists():
            output_of([self.make_ir, prefix, "--layers", layers, *options])
        return self.work / f"{name}.xml"

    def engine(self, xml, *options):
        return json.loads(output_of([self.engine_bench, xml, "--work", self.work, "--rounds", self.rounds, "--json", *options]))

    def modes(self, xml):
        report = self.engine(xml)
        self.machine = {key: report[key] for key in ("processor", "system", "file_system", "threads")}
        print(f"{self.machine['processor']}, {self.machine['threads']} threads, {self.machine['system']}, {self.machine['file_system']}; "
              f"{report['input_bytes'] / 1e9:.2f} GB of f16 weights, medians of {self.rounds}")
        for line in report["modes"]:
            gigabytes = report["input_bytes"] / 1e9 / line["seconds"]
            self.row(line["mode"], line["ratio"], "x copy limit", MODES.get(line["mode"]),
                     f"{line['seconds']:.3f} s, limit {line['copy_limit_seconds']:.3f} s, {gigabytes:.1f} GB/s")
        self.row("engine_bench's own peak memory", report["peak_rss_kib"] / 1024, "MiB", 256)

    def memory(self, xml, what):
        out = self.work / "table-out.xml"
        for name, options in (("int8_asym", ["--mode", "int8_asym"]), ("int4_asym g64 ratio 0.8", ["--mode", "int4_asym", "--group-size", "64", "--ratio", "0.8"])):
            digests = set()
            for threads in ([], ["--threads", "1"]):
                seconds, peak = run([self.ovpress, "compress", xml, "-o", out, "--quiet", *options, *threads])
                digests.add(digest(out.with_suffix(".bin")))
                if not threads:
                    self.row(f"peak memory, {what}, {name}", peak / MIB, "MiB", 256, f"{seconds:.2f} s with fsync")
                if "huge" in xml.name:
                    break
            if len(digests) != 1:
                raise RuntimeError(f"{name}: the output depends on the number of threads")
        out.unlink()
        out.with_suffix(".bin").unlink()

    def plan(self):
        # 27 layers a block, four around them.
        xml = self.model("plan", 400, "--hidden", "64", "--intermediate", "64", "--vocabulary", "64", "--sparse")
        layers = xml.read_text().count("<layer ")
        seconds = statistics.median(run([self.ovpress, "compress", xml, "-o", self.work / "plan-out.xml", "--dry-run"])[0] for _ in range(5))
        self.row(f"plan of {layers:,} layers from the .xml, with process start", seconds, "s", 0.3 * layers / 10000)
        times = [run([self.ovpress, "--version"])[0] for _ in range(21)]
        self.row("start of the command line (--version)", statistics.median(times) * 1000, "ms", 20)

    def flat(self, huge):
        # Holes, dropped from the page cache before each run, and no output: every size does the same for each of its bytes.
        sizes = [("flat-100MB", 2, "--vocabulary", "2000"), ("flat-1GB", 8), ("big-sparse", 18)] + ([("huge", 200)] if huge else [])
        per_gigabyte = {}
        for name, layers, *options in sizes:
            xml = self.model(name, layers, *options, "--sparse")
            report = self.engine(xml, "--discard", "--cold", "--only", "int8_asym")
            size = report["input_bytes"] / 1e9
            per_gigabyte[size] = report["modes"][0]["seconds"] / size
            self.row(f"int8_asym of {size:.2f} GB, cold holes in, nothing out", per_gigabyte[size], "s a GB")
        middle = statistics.median(per_gigabyte.values())
        spread = max(abs(value / middle - 1) for value in per_gigabyte.values())
        self.row("largest distance of these from their median", spread * 100, "%", 10)

    def nncf(self, xml):
        for name, options in (("int8_asym", ["--mode", "int8_asym"]), ("int4_sym g128", ["--mode", "int4_sym", "--group-size", "128"])):
            ours = self.work / "table-ours.xml"
            seconds, peak = run([self.ovpress, "compress", xml, "-o", ours, "--quiet", *options])
            self.row(f"ovpress {name}, whole command with fsync", seconds, "s", note=f"{peak / MIB:.0f} MiB")
            report = json.loads(output_of([sys.executable, HERE / "nncf_time.py", xml, "--json", "--out", self.work / "table-nncf.xml", "--equal-to", ours, *options]))
            if report["constants_that_differ"]:
                raise RuntimeError(f"{name}: NNCF's constants differ from ours: {report['constants_that_differ'][:5]}")
            self.row(f"NNCF {report['version']} {name}", report["seconds"], "s",
                     note=f"{report['peak_mib']} MiB; {report['constants']} constants equal ours; {report['seconds'] / seconds:.1f} x ovpress")
            for path in (ours, self.work / "table-nncf.xml"):
                path.unlink()
                path.with_suffix(".bin").unlink()

    def llama(self):
        report = json.loads(output_of([sys.executable, HERE / "llama_time.py", "--work", self.work, "--layers", "1" if self.quick else "18"]))
        for line in report["runs"]:
            self.row(f"llama.cpp ({report['version']}) {line['type']}, the same shapes", line["seconds"], "s", note=f"{line['peak_mib']} MiB, {line['output_bytes'] / 1e9:.2f} GB out")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default="build/ci", help="the build folder (default: %(default)s)")
    parser.add_argument("--work", required=True, help="a folder for models and outputs; models stay for the next run")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", help="also write the table to this file")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--huge", action="store_true")
    parser.add_argument("--nncf", action="store_true")
    parser.add_argument("--llama", action="store_true")
    arguments = parser.parse_args()
    table = Table(arguments)
    xml = table.model("small", 1, "--vocabulary", "4000") if arguments.quick else table.model("big", 18)
    table.modes(xml)
    table.memory(xml, f"{xml.with_suffix('.bin').stat().st_size / 1e9:.1f} GB")
    if arguments.huge:
        table.memory(table.model("huge", 200, "--sparse"), "20.8 GB")
    table.plan()
    if not arguments.quick:
        table.flat(arguments.huge)
    if arguments.nncf:
        table.nncf(xml)
    if arguments.llama:
        table.llama()
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({**table.machine, "rows": table.rows}, file, indent=2)
    missed = [row["what"] for row in table.rows if row["met"] is False]
    print(f"{sum(row['met'] is True for row in table.rows)} goals met, {len(missed)} missed")


if __name__ == "__main__":
    try:
        main()
    except (RuntimeError, subprocess.CalledProcessError, OSError) as error:
        sys.exit(f"table.py: {error}")
