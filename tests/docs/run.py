#!/usr/bin/env python3
"""Runs every command of README.md and docs/*.md, and checks links and flags.

  tests/docs/run.py --build build/ci [NAME...]

Each fenced block says what it is:
  ```sh       commands; each must succeed
  ```console  "$ command", then lines of its output. They are looked for in that
              order; a line "..." stands for any lines, job ids match any
  ```text, ```json, ```python, ...    no commands
A block of commands that cannot run here begins with a comment that the reader
sees too:  # not run in the tests: REASON
Its flags and files are checked all the same.

The blocks of a document run in order, in one shell, in an empty folder with the
repository's folders, a model.xml, and the built programs in the PATH. The ports
8470 and 8471 become free ones; where a document says SERVER and METRICS there
is a server. Needs tests/integration/requirements.txt, for docs/api.md. The last
line is "N passed, N failed"."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import os
import pathlib
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/testing"))
from test_runner import run_tests

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODEL = ROOT / "tests/data/models/llama/openvino_model"
COMMANDS = ("sh", "console")
OTHERS = ("text", "json", "python", "yaml", "cpp", "cmake", "proto", "ini")
NOT_RUN = re.compile(r"# not run in the tests: \S.+")
COMMAND_SECONDS = 120
JOB_ID = re.compile(r"\b[0-9a-f]{32}\b")


@dataclasses.dataclass
class Block:
    document: pathlib.Path
    line: int  # of its first line of text
    language: str
    lines: list[str]

    @property
    def where(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"

    @property
    def runs(self) -> bool:
        return self.language in COMMANDS and not NOT_RUN.fullmatch(self.lines[0])

    def steps(self) -> list[tuple[str, list[str]]]:
        """Commands, each with the lines it is said to print. In `sh` a line
        that ends in a backslash goes on; so it does after "$ "."""
        steps: list[tuple[str, list[str]]] = []
        going_on = False
        for line in self.lines:
            if self.language == "console" and not going_on and not line.startswith("$ "):
                assert steps, f"{self.where}: a console block begins with a command"
                if line.strip():
                    steps[-1][1].append(line.rstrip())
                continue
            text = line.removeprefix("$ ") if self.language == "console" else line
            if going_on:
                steps[-1] = (f"{steps[-1][0]}\n{text}", [])
            elif text.strip() and not text.startswith("#"):
                steps.append((text, []))
            going_on = text.endswith("\\")
        return steps


@functools.cache
def blocks() -> list[Block]:
    found = []
    for document in DOCUMENTS:
        block = None
        for number, line in enumerate(document.read_text().splitlines(), 1):
            fence = re.fullmatch(r"```(\S*).*", line)
            if block is not None and line == "```":
                found.append(block)
                block = None
            elif block is not None:
                block.lines.append(line)
            elif fence:
                block = Block(document, number + 1, fence[1], [])
        assert block is None, f"{document.name}: a block does not end"
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Shell:
    """One bash with what a document needs; commands one after the other."""

    def __init__(self, folder: pathlib.Path, build: pathlib.Path, with_server: bool):
        self.ports = {"8470": str(free_port()), "8471": str(free_port())}
        self.ids: dict[str, str] = {}  # job ids of the document, and the real ones
        programs = folder / "programs"
        programs.mkdir(parents=True)
        home = folder / "home"
        home.mkdir()
        (programs / "ovpress").symlink_to(build / "client/cli/ovpress")
        # The defaults are fixed ports; another server may have them.
        listen = f"--listen=127.0.0.1:{self.ports['8470']} --metrics=127.0.0.1:{self.ports['8471']}"
        shim = programs / "ovpress-server"
        program = build / "server/ovpress-server"
        shim.write_text(f"#!/bin/sh\ncase $1 in -*) exec '{program}' {listen} \"$@\" ;; *) exec '{program}' \"$@\" ;; esac\n")
        shim.chmod(0o755)
        for name in ("tests", "scripts", "bench", "deploy", "docs", "proto", "client", "LICENSE"):
            (home / name).symlink_to(ROOT / name)
        (home / "build").mkdir()
        for name in ("ci", "release"):
            (home / "build" / name).symlink_to(build)
        for suffix in (".xml", ".bin"):
            shutil.copy(MODEL.with_suffix(suffix), home / f"model{suffix}")
        self.process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"], cwd=home, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True, env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(home), "LC_ALL": "C.UTF-8"})
        self.output: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        if with_server:
            self.run("ovpress-server --data-dir server-data 2>/dev/null &")

    def _read(self):
        for line in self.process.stdout:
            self.output.put(line.rstrip("\n"))
        self.output.put(None)

    def wait_for_server(self):
        """A reader takes longer for the next line than a server to start."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(self.ports["8470"])), timeout=1):
                return
            time.sleep(0.05)
        raise AssertionError("ovpress-server does not listen")

    def substitute(self, command: str) -> str:
        for old, new in self.ports.items():
            command = re.sub(rf"\b{old}\b", new, command)
        command = re.sub(r"\bSERVER\b", f"127.0.0.1:{self.ports['8470']}", command)
        command = re.sub(r"\bMETRICS\b", f"http://127.0.0.1:{self.ports['8471']}", command)
        return JOB_ID.sub(lambda m: self.ids.get(m[0], m[0]), command)

    def run(self, command: str) -> tuple[int, list[str]]:
        mark = f"-- end {time.monotonic_ns()} --"
        self.process.stdin.write(f"{command}\nprintf '%s %s\\n' '{mark}' $?\n")
        self.process.stdin.flush()
        if re.match(r"ovpress-server .*&", command):
            self.wait_for_server()
        lines = []
        deadline = time.monotonic() + COMMAND_SECONDS
        while True:
            try:
                line = self.output.get(timeout=max(0.1, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no end after {COMMAND_SECONDS} s: {command}\n" + "\n".join(lines[-20:])) from None
            assert line is not None, f"the shell ended: {command}\n" + "\n".join(lines[-20:])
            if line.startswith(mark):
                return int(line.split()[-1]), lines
            lines.append(line)

    def compare(self, expected: list[str], actual: list[str], where: str):
        """Each line in order, between them only what "..." allows; fields may be
        further apart, for columns. Learns the ids of jobs."""
        position, may_skip = 0, False
        for line in expected:
            if line.strip() == "...":
                may_skip = True
                continue
            pattern = r"\s+".join(re.escape(word) for word in line.split())
            pattern = JOB_ID.sub("([0-9a-f]{32})", pattern)
            while position < len(actual):
                match = re.fullmatch(rf"\s*{pattern}\s*", actual[position])
                position += 1
                if match:
                    self.ids |= dict(zip(JOB_ID.findall(line), match.groups()))
                    break
                assert may_skip or not actual[position - 1].strip(), f"{where}: expected\n  {line}\ngot\n  {actual[position - 1]}"
            else:
                raise AssertionError(f"{where}: expected\n  {line}\nin\n  " + "\n  ".join(actual[-30:]))
            may_skip = False

    def close(self):
        # Its own session: the shell and what it started, nothing else.
        for code in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, code)
                self.process.wait(timeout=10)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                pass


class Context:
    def __init__(self, build: pathlib.Path, work: pathlib.Path):
        self.build, self.work = build, work
        self.ovpress, self.server = build / "client/cli/ovpress", build / "server/ovpress-server"

    @functools.cache
    def flags(self, *command: str) -> set[str]:
        """Of `ovpress-server`, `ovpress`, `ovpress compress`..."""
        program = {"ovpress": self.ovpress, "ovpress-server": self.server}[command[0]]
        answer = subprocess.run([program, *command[1:], "--help"], capture_output=True, text=True)
        assert answer.returncode == 0, f"there is no {' '.join(command)}"
        return set(re.findall(r"(?<![\w-])-{1,2}[a-z][\w-]*", "\n".join(l for l in answer.stdout.splitlines() if l.startswith("  -"))))


def run_document(c: Context, document: pathlib.Path) -> int:
    own = [b for b in blocks() if b.document == document and b.runs]
    if not own:
        return 0
    text = "\n".join("\n".join(b.lines) for b in own)
    shell = Shell(c.work / document.stem, c.build, with_server=bool(re.search(r"\b(SERVER|METRICS)\b", text)))
    count = 0
    try:
        for block in own:
            for command, expected in block.steps():
                code, lines = shell.run(shell.substitute(command))
                assert code == 0, f"{block.where}: exit status {code}: {command}\n" + "\n".join(lines[-30:])
                shell.compare(expected, lines, f"{block.where}: {command}")
                count += 1
    finally:
        shell.close()
    return count


def test_every_block_says_what_it_is(c: Context):
    for block in blocks():
        assert block.language in COMMANDS + OTHERS, f"{block.where}: write ```sh or ```console for commands (see tests/docs/run.py), ```text for text"
        assert block.lines, block.where
        if block.language in COMMANDS and block.lines[0].startswith("# not run"):
            assert NOT_RUN.fullmatch(block.lines[0]), f"{block.where}: the form is '# not run in the tests: REASON'"
        if block.language == "text":
            assert not re.match(r"\$ |(ovpress|kubectl|docker|scripts/\S+|curl) ", block.lines[0]), f"{block.where}: looks like commands"
    running = [b for b in blocks() if b.runs]
    assert len(running) >= 5, "next to nothing is run"


def test_commands_run(c: Context):
    counts = {d.name: run_document(c, d) for d in DOCUMENTS}
    print("     commands:", {name: n for name, n in counts.items() if n})
    assert counts["README.md"] >= 8, counts


def test_commands_that_do_not_run_name_what_exists(c: Context):
    for block in blocks():
        if block.language not in COMMANDS:
            continue
        text = "\n".join(line for line in block.lines if not NOT_RUN.fullmatch(line))
        for path in re.findall(r"(?<![\w./-])((?:scripts|bench|tests|deploy|client|docs)/[\w./-]+)", text):
            assert (ROOT / path.rstrip(".")).exists(), f"{block.where}: there is no {path}"
        for line in text.replace("\\\n", " ").splitlines():
            for program, rest in re.findall(r"(?:^(?:\$ )?|[|;&(] *|/)(ovpress(?:-server)?) ([^|;&#]*)", line):
                subcommands = re.match(r"(?:[a-z]+ (?![\w./]*[./]))*(?:[a-z]+$)?", rest)[0].split()
                if program == "ovpress" and not subcommands:
                    continue
                # "ovpress watch JOB", but "ovpress-server token new".
                known = c.flags(program, *(subcommands if program == "ovpress-server" else subcommands[:1]))
                unknown = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", rest)) - known
                assert not unknown, f"{block.where}: {program} {rest}: {unknown}"


def test_readme_options_exist(c: Context):
    table = re.search(r"^## Options of `ovpress compress.*?\n(.*?)^## ", (ROOT / "README.md").read_text(), re.M | re.S)[1]
    flags = {f for row in re.findall(r"^\| (`-.*?) \|", table, re.M) for f in re.findall(r"--[a-z][\w-]*", row)}
    assert len(flags) > 12, flags
    assert flags <= c.flags("ovpress", "compress"), flags - c.flags("ovpress", "compress")


def anchors(text: str) -> set[str]:
    """As GitHub makes them from headings."""
    seen: dict[str, int] = {}
    found = set()
    for heading in re.findall(r"^#+ +(.*)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found.add(anchor if anchor not in seen else f"{anchor}-{seen[anchor]}")
        seen[anchor] = seen.get(anchor, 0) + 1
    return found


def test_links(c: Context):
    count = 0
    for document in [*DOCUMENTS, *sorted((ROOT / "docs/adr").glob("*.md")), ROOT / "CHANGELOG.md", ROOT / "client/python/README.md"]:
        text = document.read_text()
        for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.S)):
            if re.match(r"https?:", target):
                continue
            path, _, anchor = target.partition("#")
            other = (document.parent / path) if path else document
            assert other.exists(), f"{document.name}: {target}"
            if anchor and other.suffix == ".md":
                assert anchor in anchors(other.read_text()), f"{document.name}: {target}: no such heading"
            count += 1
    assert count > 60, count
    # A document that nothing links to is not found by anyone.
    linked = "\n".join(d.read_text() for d in DOCUMENTS)
    for document in DOCUMENTS[1:]:
        assert f"{document.name})" in linked or f"{document.name}#" in linked, f"nothing links to docs/{document.name}"


def test_api_reference_is_current(c: Context):
    answer = subprocess.run([sys.executable, str(ROOT / "scripts/make-api-docs"), "--check"], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=pathlib.Path, required=True, help="a build directory, e.g. build/ci")
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ovpress-docs-") as folder:
        c = Context(arguments.build.resolve(), pathlib.Path(folder))
        return run_tests(globals(), c, arguments.names)


if __name__ == "__main__":
    sys.exit(main())
