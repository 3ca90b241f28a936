#!/usr/bin/env python3
"""Checks what users install: the CMake package by building a project with it,
man pages and shell completion against --help and in real shells, and how the
programs were linked.

  tests/package/run.py --build build/ci [NAME...]

Needs Python's standard library, and Debian's packages binutils, mandoc, zsh
and fish. The last line is "N passed, N failed"."""

from __future__ import annotations

import argparse
import os
import pathlib
import pty
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / "tests/data/models/llama/openvino_model.xml"


def run(*command, **options) -> subprocess.CompletedProcess:
    options.setdefault("timeout", 300)
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)


def must(*command, **options) -> str:
    answer = run(*command, **options)
    assert answer.returncode == 0, f"{command}: {answer.returncode}\n{answer.stdout[-2000:]}\n{answer.stderr[-2000:]}"
    return answer.stdout


class Context:
    def __init__(self, build: pathlib.Path, work: pathlib.Path):
        self.build, self.work = build, work
        self.ovpress, self.server = build / "client/cli/ovpress", build / "server/ovpress-server"
        self.documents = build / "documents"

    def help_of(self, *command) -> str:
        return must(command[0], *command[1:], "--help")

    def places(self) -> dict[str, str]:
        """What has a --help: the server, the command line, each command."""
        help_text = self.help_of(self.ovpress)
        commands = re.findall(r"^  ([\w-]+) {2,}\S", help_text.split("Subcommands:")[1], re.M)
        assert len(commands) > 8, help_text
        texts = {"ovpress-server": self.help_of(self.server), "ovpress": help_text}
        return texts | {f"ovpress {name}": self.help_of(self.ovpress, name) for name in commands}


def flags_of(help_text: str) -> list[str]:
    flags = []
    for line in re.findall(r"^  (-.*)$", help_text, re.M):
        flags += re.findall(r"(?:^|,)(-[\w-]+)", line.split(" ")[0])
    assert "--help" in flags, help_text
    return flags


# --- the CMake package ---


def test_a_project_builds_with_the_installed_package(c: Context):
    first = c.work / "first"
    must("cmake", "--install", c.build, "--prefix", first, "--strip")
    # Whoever packages it moves it: nothing may remember where it was.
    prefix = c.work / "prefix"
    first.rename(prefix)
    for path in prefix.rglob("*.cmake"):
        text = path.read_text()
        for folder in (ROOT, c.build, first):
            assert f"{folder}/" not in text, f"{path} names {folder}"
    consumer = c.work / "consumer"
    must("cmake", "-S", ROOT / "tests/package/consumer", "-B", consumer, "-G", "Ninja",
         f"-DCMAKE_PREFIX_PATH={prefix}", "-DCMAKE_BUILD_TYPE=Release")
    must("cmake", "--build", consumer)
    expected, ours, remote = c.work / "expected.xml", c.work / "ours.xml", c.work / "remote.xml"
    must(prefix / "bin/ovpress", "compress", MODEL, "-o", expected, "--mode=int8_sym", "--quiet")
    must(consumer / "use_core", MODEL, ours)
    ports = c.work / "ports"
    with (c.work / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [prefix / "bin/ovpress-server", "--listen=127.0.0.1:0", "--metrics=127.0.0.1:0",
             f"--data-dir={c.work / 'data'}", f"--port-file={ports}"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while not ports.exists():
            assert server.poll() is None and time.monotonic() < deadline, (c.work / "server.log").read_text()
            time.sleep(0.02)
        must(consumer / "use_client", f"127.0.0.1:{ports.read_text().split()[0]}", MODEL, remote)
    finally:
        server.terminate()
        server.wait(timeout=60)
    for out in (ours, remote):
        assert out.with_suffix(".bin").read_bytes() == expected.with_suffix(".bin").read_bytes(), out.name
        assert out.read_bytes() == expected.read_bytes(), out.name

    def configure(package: pathlib.Path, version: str, components: str) -> str:
        project = c.work / "ask"
        shutil.rmtree(project, ignore_errors=True)
        project.mkdir()
        (project / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.22)\nproject(ask LANGUAGES C CXX)\n"
            f"find_package(ovpress {version} CONFIG REQUIRED COMPONENTS {components})\n")
        return run("cmake", "-S", project, "-B", project / "build", f"-DCMAKE_PREFIX_PATH={package}").stderr

    assert configure(prefix, "0.1", "core") == ""
    assert "0.99" in configure(prefix, "0.99", "core"), "a newer version than ours was found"
    assert "ovpress has no component 'server'" in configure(prefix, "", "core server")
    next(prefix.rglob("ovpress-client-targets.cmake")).unlink()
    assert "OVPRESS_CORE_ONLY" in configure(prefix, "0.1", "client")


# --- man pages and completion ---


def test_man_pages_hold_every_flag(c: Context):
    texts = {"ovpress": must("mandoc", "-T", "utf8", c.documents / "ovpress.1"),
             "ovpress-server": must("mandoc", "-T", "utf8", c.documents / "ovpress-server.8")}
    texts = {name: re.sub(r".\x08", "", text) for name, text in texts.items()}
    # Each command's part of its own: --json of list does not stand for status.
    parts = re.split(r"^   ovpress ([\w-]+)$", texts["ovpress"], flags=re.M)
    sections = dict(zip((f"ovpress {n}" for n in parts[1::2]), parts[2::2]))
    sections |= {"ovpress": texts["ovpress"].split("\nOPTIONS\n")[1], "ovpress-server": texts["ovpress-server"]}
    count = 0
    for place, help_text in c.places().items():
        for flag in flags_of(help_text):
            # An entry of its own, not a word in a sentence.
            assert re.search(rf"^     +(-\w, )?{flag}(?![\w-])", sections[place], re.M), f"{place} {flag}"
            count += 1
    assert count > 100, count
    for page in (c.documents / "ovpress.1", c.documents / "ovpress-server.8"):
        answer = run("mandoc", "-T", "lint", "-W", "warning", page)
        complaints = [line for line in answer.stdout.splitlines() if "missing date" not in line]
        assert not complaints, complaints


def complete_in_bash(script: pathlib.Path, typed: str, folder: pathlib.Path) -> list[str]:
    """Types into an interactive bash, presses Tab, and returns the words that
    bash then sees on the line."""
    return complete_in_shell(
        ["bash", "--noprofile", "--norc", "-i"], f"bind 'set bell-style none' 'set enable-bracketed-paste off'; source {script}", typed, folder)


def complete_in_zsh(script: pathlib.Path, typed: str, folder: pathlib.Path) -> list[str]:
    return complete_in_shell(
        ["zsh", "-f", "-i"], f"unsetopt beep prompt_sp; bindkey -e; autoload -Uz compinit; compinit -u -D; source {script}", typed, folder)


def complete_in_shell(shell: list[str], setup: str, typed: str, folder: pathlib.Path) -> list[str]:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.environ.update({"TERM": "dumb", "PS1": "", "HOME": str(folder)})
        os.execvp(shell[0], shell)
    log = b""

    def wait_for(mark: bytes):
        nonlocal log
        deadline = time.monotonic() + 20
        while mark not in log:
            ready, _, _ = select.select([terminal], [], [], 0.1)
            if ready:
                try:
                    log += os.read(terminal, 65536)
                except OSError:
                    break
            assert time.monotonic() < deadline, f"{shell[0]} does not answer: {log!r}"

    try:
        os.write(terminal, f"{setup}; echo rea''dy\n".encode())
        wait_for(b"ready\r\n")
        # Home, and a command that prints the words of the line.
        os.write(terminal, typed.encode() + b"\t\x01printf '<%s>' \x05; echo do''ne\n")
        wait_for(b"done\r\n")
    finally:
        os.write(terminal, b"exit\n")
        os.close(terminal)
        os.waitpid(pid, 0)
    printed = re.findall(r"<([^<>]*)>", log.decode(errors="replace").split("ready\r\n")[-1])
    return [word for word in printed if word != "%s"]


COMPLETIONS = [  # what is typed, the last word after Tab
    ("ovpress comple", "completion"),
    ("ovpress compress --measu", "--measure-error"),
    ("ovpress compress --mode int4_s", "int4_sym"),
    ("ovpress compress weig", "weights.xml"),
    ("ovpress compress weights.xml --codebook weig", "weights.xml"),
    ("ovpress submit weights.xml --backup-mode fp", "fp8_e4m3"),
    ("ovpress completion fi", "fish"),
]


def test_bash_completes(c: Context):
    folder = c.work / "bash"
    folder.mkdir()
    (folder / "weights.xml").touch()
    script = c.documents / "ovpress.bash"
    for typed, expected in COMPLETIONS + [
            ("ovpress compress --mode=nf", "--mode=nf4"),
            ("ovpress compress --report=weig", "--report=weights.xml"),
            # No file is offered where none is meant.
            ("ovpress compress --ratio weig", "weig"), ("ovpress status weig", "weig")]:
        words = complete_in_bash(script, typed, folder)
        assert words and words[-1] == expected, f"'{typed}' became {words}"
    words = complete_in_bash(c.documents / "ovpress-server.bash", "ovpress-server --log-format js", folder)
    assert words[-1] == "json", words


def test_zsh_completes(c: Context):
    folder = c.work / "zsh"
    folder.mkdir()
    (folder / "weights.xml").touch()
    for typed, expected in COMPLETIONS:
        if typed.endswith("comple"):
            typed += "t"
        words = complete_in_zsh(c.documents / "ovpress.zsh", typed, folder)
        assert words and words[-1] == expected, f"'{typed}' became {words}"
    words = complete_in_zsh(c.documents / "ovpress-server.zsh", "ovpress-server --log-format=js", folder)
    assert words[-1] == "--log-format=json", words


def test_fish_completes(c: Context):
    folder = c.work / "fish"
    folder.mkdir()
    (folder / "weights.xml").touch()
    environment = {**os.environ, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder / ".config")}
    for typed, expected in COMPLETIONS:
        text = must("fish", "--no-config", "-c", f"source {c.documents / 'ovpress.fish'}; complete -C '{typed}'", cwd=folder, env=environment)
        assert [line.split("\t")[0] for line in text.splitlines()] == [expected], f"'{typed}': {text}"


def test_completions_hold_every_flag(c: Context):
    """And no other: what is hidden stays hidden."""
    places = c.places()
    bash = {p: (c.documents / f"{p}.bash").read_text() for p in ("ovpress", "ovpress-server")}
    zsh = {p: (c.documents / f"{p}.zsh").read_text() for p in bash}
    fish = {p: (c.documents / f"{p}.fish").read_text() for p in bash}
    for place, help_text in places.items():
        program, _, command = place.partition(" ")
        flags = set(flags_of(help_text))
        words = re.search(rf"^      '{command}'\).*words='([^']*)' ;;$", bash[program], re.M)[1].split()
        assert {w for w in words if w.startswith("-")} == flags, place
        if command:
            block = re.search(rf"^        {command}\) _arguments(.*?) ;;$", zsh[program], re.M | re.S)[1]
        else:
            block = re.search(r"^  _arguments(.*?)(?:^  case|^\})", zsh[program], re.M | re.S)[1]
        assert set(re.findall(r"^\s+'\*?(-[\w-]*[\w])", block, re.M)) == flags, place
        where = f"'__fish_seen_subcommand_from {command}'" if command else "__fish_use_subcommand"
        lines = [line for line in fish[program].splitlines() if f"-n {where} " in line or program == "ovpress-server"]
        found = {f"-{n}" for line in lines for n in re.findall(r" -s (\w)", line)} | {f"--{n}" for line in lines for n in re.findall(r" -l ([\w-]+)", line)}
        assert found == flags, f"{place}: {found ^ flags}"
    for shell in ("bash", "zsh", "fish"):
        assert must(c.ovpress, "completion", shell) == (c.documents / f"ovpress.{shell}").read_text()
    assert run(c.ovpress, "completion", "tcsh").returncode == 2


# --- how the programs were linked ---


# --- end of tests ---


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=pathlib.Path, required=True, help="a build directory, e.g. build/ci")
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    passed = failed = 0
    with tempfile.TemporaryDirectory(prefix="ovpress-package-") as folder:
        c = Context(arguments.build.resolve(), pathlib.Path(folder))
        for name, test in list(globals().items()):
            if not name.startswith("test_") or (arguments.names and name not in arguments.names):
                continue
            begin = time.monotonic()
            try:
                test(c)
                passed += 1
                print(f"ok   {name} ({time.monotonic() - begin:.1f} s)", flush=True)
            except Exception:
                failed += 1
                print(f"FAIL {name}\n{traceback.format_exc()}", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
