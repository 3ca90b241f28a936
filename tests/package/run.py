#!/usr/bin/env python3
"""Checks what users install: the CMake package by building a project with it,
man pages and shell completion against --help and in real shells, and how the
programs were linked.

  tests/package/run.py --build build/ci [--debs build/deb] [NAME...]

With --debs also the Debian packages that scripts/build-deb put there; what they
do once installed is scripts/test-deb's. Needs Debian's packages binutils,
mandoc, zsh and fish (with --debs lintian too) and requirements.txt. The last line is "N passed, N failed"."""

from __future__ import annotations

import argparse
import hashlib
import json
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

from spdx_tools.spdx.model import RelationshipType
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/testing"))
from test_runner import run_tests

MODEL = ROOT / "tests/data/models/llama/openvino_model.xml"


def run(*command, **options) -> subprocess.CompletedProcess:
    options.setdefault("timeout", 300)
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)


def must(*command, **options) -> str:
    answer = run(*command, **options)
    assert answer.returncode == 0, f"{command}: {answer.returncode}\n{answer.stdout[-2000:]}\n{answer.stderr[-2000:]}"
    return answer.stdout


class Context:
    def __init__(self, build: pathlib.Path, debs: pathlib.Path | None, work: pathlib.Path):
        self.build, self.debs, self.work = build, debs, work
        self.ovpress, self.server = build / "client/cli/ovpress", build / "server/ovpress-server"
        self.documents = build / "documents"

    def help_of(self, *command) -> str:
        return must(command[0], *command[1:], "--help")

    def places(self) -> dict[str, str]:
        """What has a --help: "ovpress", "ovpress compress", "ovpress-server"..."""
        texts = {}

        def visit(program: pathlib.Path, path: list[str]):
            text = self.help_of(program, *path)
            texts[" ".join([program.name, *path])] = text
            _, _, commands = text.partition("\nSubcommands:\n")
            for name in re.findall(r"^  ([\w-]+) {2,}\S", commands, re.M):
                visit(program, [*path, name])

        visit(self.ovpress, [])
        visit(self.server, [])
        assert len(texts) > 10, texts
        return texts


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
    sections = {}
    for name, text in texts.items():
        commands, _, sections[name] = text.partition("\nOPTIONS\n")
        parts = re.split(rf"^   ({name} [\w -]+)$", commands, flags=re.M)
        sections |= dict(zip(parts[1::2], parts[2::2]))
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
    for typed, expected in (("ovpress-server --log-format js", "json"), ("ovpress-server token new --scop", "--scopes"), ("ovpress-server tok", "token")):
        words = complete_in_bash(c.documents / "ovpress-server.bash", typed, folder)
        assert words[-1] == expected, words


def test_zsh_completes(c: Context):
    folder = c.work / "zsh"
    folder.mkdir()
    (folder / "weights.xml").touch()
    for typed, expected in COMPLETIONS:
        if typed.endswith("comple"):
            typed += "t"
        words = complete_in_zsh(c.documents / "ovpress.zsh", typed, folder)
        assert words and words[-1] == expected, f"'{typed}' became {words}"
    for typed, expected in (("ovpress-server --log-format=js", "--log-format=json"), ("ovpress-server token new --iden", "--identity")):
        words = complete_in_zsh(c.documents / "ovpress-server.zsh", typed, folder)
        assert words[-1] == expected, words


def test_fish_completes(c: Context):
    folder = c.work / "fish"
    folder.mkdir()
    (folder / "weights.xml").touch()
    environment = {**os.environ, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder / ".config")}
    for typed, expected in COMPLETIONS:
        text = must("fish", "--no-config", "-c", f"source {c.documents / 'ovpress.fish'}; complete -C '{typed}'", cwd=folder, env=environment)
        assert [line.split("\t")[0] for line in text.splitlines()] == [expected], f"'{typed}': {text}"
    text = must("fish", "--no-config", "-c", f"source {c.documents / 'ovpress-server.fish'}; complete -C 'ovpress-server token new --scopes adm'", cwd=folder, env=environment)
    assert text.split("\t")[0].strip() == "admin", text


def test_completions_hold_every_flag(c: Context):
    """And no other: what is hidden stays hidden."""
    places = c.places()
    bash = {p: (c.documents / f"{p}.bash").read_text() for p in ("ovpress", "ovpress-server")}
    zsh = {p: (c.documents / f"{p}.zsh").read_text() for p in bash}
    fish = {p: (c.documents / f"{p}.fish").read_text() for p in bash}
    for place, help_text in places.items():
        program, _, command = place.partition(" ")
        below = sorted(p.removeprefix(f"{place} ") for p in places if p.startswith(f"{place} ") and " " not in p.removeprefix(f"{place} "))
        flags = set(flags_of(help_text))
        words = re.search(rf"^      '{command}'\).*words='([^']*)' ;;$", bash[program], re.M)[1].split()
        assert {w for w in words if w.startswith("-")} == flags and set(below) <= set(words), place
        function = "_" + re.sub(r"[ -]", "_", place)
        block = re.search(rf"^{function}\(\) \{{\n(.*?)(?:^  case|^\}})", zsh[program], re.M | re.S)[1]
        assert set(re.findall(r"^\s+'\*?(-[\w-]*[\w])", block, re.M)) == flags, place
        conditions = [f"__fish_seen_subcommand_from {word}" for word in command.split()]
        own = "__fish_use_subcommand" if not command else "not __fish_seen_subcommand_from "
        pattern = "; and ".join(map(re.escape, conditions + ([own] if below else []))) + (r"[\w -]+" if command and below else "")
        lines = [line for line in fish[program].splitlines() if re.search(rf" -n '{pattern}' ", line)]
        found = {f"-{n}" for line in lines for n in re.findall(r" -s (\w)", line)} | {f"--{n}" for line in lines for n in re.findall(r" -l ([\w-]+)", line)}
        assert found == flags, f"{place}: {found ^ flags}"
    for shell in ("bash", "zsh", "fish"):
        assert must(c.ovpress, "completion", shell) == (c.documents / f"ovpress.{shell}").read_text()
    assert run(c.ovpress, "completion", "tcsh").returncode == 2


# --- how the programs were compiled and linked ---


def objects_of(c: Context) -> list[pathlib.Path]:
    found = [p for folder in ("core", "proto", "server", "client", "usage") for p in (c.build / folder).rglob("*.o")]
    assert len(found) > 60, len(found)
    return found


def has_cet(path: pathlib.Path) -> bool:
    return "IBT, SHSTK" in must("readelf", "--notes", "--wide", path)


def test_programs_are_hardened(c: Context):
    for program in (c.ovpress, c.server):
        dynamic = must("readelf", "--dynamic", "--wide", program)
        segments = must("readelf", "--segments", "--wide", program)
        imported = must("nm", "--dynamic", "--undefined-only", program)
        assert re.search(r"\(FLAGS_1\).*\bNOW\b.*\bPIE\b", dynamic), f"{program.name}: PIE and BIND_NOW\n{dynamic}"
        assert "GNU_RELRO" in segments, f"{program.name}: RELRO"  # with BIND_NOW: full
        assert re.search(r"GNU_STACK .* RW +0x", segments), f"{program.name}: the stack is executable"
        assert not re.search(r"^ +LOAD .* RWE ", segments, re.M), f"{program.name}: a segment is writable and executable"
        for name in ("RPATH", "RUNPATH", "TEXTREL"):
            assert f"({name})" not in dynamic, f"{program.name}: {name}"
        assert "__stack_chk_fail" in imported, f"{program.name}: stack protector"
        assert re.search(r"__(?!stack)\w+_chk\b", imported), f"{program.name}: FORTIFY_SOURCE"


def test_every_object_is_hardened(c: Context):
    """Also those of generated code. What a program imports shows only that
    some of its objects were."""
    if os.uname().machine == "x86_64":
        plain = [p.name for p in objects_of(c) if not has_cet(p)]
        assert not plain, f"without CET's marks: {plain}"
        # The linker marks a program only if all that goes into it is marked, the
        # distribution's start-up code too. Debian 12's is not.
        start = [pathlib.Path(must("gcc", f"-print-file-name={n}").strip()) for n in ("Scrt1.o", "crti.o", "crtbeginS.o", "crtendS.o", "crtn.o")]
        for program in (c.ovpress, c.server):
            assert has_cet(program) == all(map(has_cet, start)), program.name
    commands = {e["file"]: e["command"] for e in json.loads((c.build / "compile_commands.json").read_text())}
    ours = {f: line for f, line in commands.items() if re.search(r"/(core|proto|server|client|usage|generated)/[^ ]*\.cc$", f) and "/tests/" not in f}
    assert len(ours) > 60, len(ours)
    for name, line in ours.items():
        for flag in ("-fstack-protector-strong", "-D_FORTIFY_SOURCE=2", "-fPIE", "-O"):
            assert flag in line or (flag == "-fPIE" and "-fPIC" in line), f"{name}: {flag}"

# --- bills of materials ---


def sbom(path: pathlib.Path) -> dict:
    """Valid by the judgement of SPDX's own tools; as JSON."""
    messages = validate_full_spdx_document(parse_file(str(path)))
    assert not messages, f"{path.name}: {messages[0].validation_message}"
    return json.loads(path.read_text())


def related(document: dict, kind: RelationshipType) -> set[str]:
    """Names of the packages in relationships of a kind, on either side of the root."""
    names = {p["SPDXID"]: p["name"] for p in document["packages"]}
    root = document["packages"][0]["SPDXID"]
    pairs = [(r["spdxElementId"], r["relatedSpdxElement"]) for r in document["relationships"] if r["relationshipType"] == kind.name]
    return {names[x] for pair in pairs for x in pair if x != root and x in names}


def check_files(document: dict, root: pathlib.Path, but: set[str] = frozenset()):
    listed = {f["fileName"]: {c["algorithm"]: c["checksumValue"] for c in f["checksums"]} for f in document["files"]}
    there = {f"./{p.relative_to(root)}": p for p in root.rglob("*") if p.is_file() and not p.is_symlink()}
    assert set(listed) == set(there) - but, set(listed) ^ set(there)
    for name, checksums in listed.items():
        assert checksums["SHA256"] == hashlib.sha256(there[name].read_bytes()).hexdigest(), name


def check_packages(document: dict):
    for package in document["packages"][1:]:
        version = must("dpkg-query", "--show", "--showformat", "${Version}", package["name"])
        assert package["versionInfo"] == version, package["name"]
        purl = package["externalRefs"][0]["referenceLocator"]
        assert re.fullmatch(r"pkg:deb/debian/[^@ ]+@[^?: ]+\?arch=\w+&distro=debian-\d+", purl), purl
    # Found by hand: these two have no library, only headers.
    assert related(document, RelationshipType.STATIC_LINK) >= {"nlohmann-json3-dev"}


def rootfs(c: Context) -> pathlib.Path | None:
    """The image's files, made as the Dockerfile does; once."""
    if os.geteuid() != 0:
        print("     (left out: make-rootfs needs root)")
        return None
    root = c.work / "rootfs"
    if not root.exists():
        must(ROOT / "deploy/image/make-rootfs", root, c.build, c.ovpress, c.server, env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"})
    return root


def test_the_image_compresses_from_its_own_files(c: Context):
    """What scripts/test-image does in a container, without one: the image's
    user, no other file than the image's, a model below /data."""
    root = rootfs(c)
    if root is None:
        return
    inside = ["chroot", "--userspec=65532:65532", root]
    data = root / "data"
    for name in (MODEL, MODEL.with_suffix(".bin")):
        os.chmod(shutil.copy(name, data), 0o644)
    environment = {"PATH": os.environ["PATH"]}
    flags = ["--mode=int4_sym", "--group-size=32", "--ratio=0.8", "--quiet"]
    must(*inside, "/usr/bin/ovpress", "compress", f"/data/{MODEL.name}", "-o", "/data/local.xml", *flags, env=environment)
    must(c.ovpress, "compress", MODEL, "-o", c.work / "outside.xml", *flags)
    assert (data / "local.bin").read_bytes() == (c.work / "outside.bin").read_bytes()
    with (c.work / "image-server.log").open("wb") as log:
        server = subprocess.Popen([str(w) for w in inside] + [
            "/usr/bin/ovpress-server", "--data-dir=/data/server", "--listen=127.0.0.1:0", "--metrics=127.0.0.1:0", "--port-file=/data/ports"],
            stdout=log, stderr=log, env=environment)
    try:
        deadline = time.monotonic() + 30
        while not (data / "ports").exists():
            assert server.poll() is None and time.monotonic() < deadline, (c.work / "image-server.log").read_text()
            time.sleep(0.02)
        address = "127.0.0.1:" + (data / "ports").read_text().split()[0]
        must(*inside, "/usr/bin/ovpress", "health", "--server", address, "--retry-seconds", "0", env=environment)
        must(*inside, "/usr/bin/ovpress", "compress", f"/data/{MODEL.name}", "-o", "/data/remote.xml", *flags, "--server", address, env=environment)
    finally:
        server.terminate()
        code = server.wait(timeout=60)
    assert code == 0, (c.work / "image-server.log").read_text()
    assert (data / "remote.bin").read_bytes() == (data / "local.bin").read_bytes()
    for path in data.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_the_image_has_a_bill_of_materials(c: Context):
    root = rootfs(c)
    if root is None:
        return
    path = root / "usr/share/doc/ovpress/sbom.spdx.json"
    document = sbom(shutil.copy(path, c.work / "image.spdx.json"))
    check_files(document, root, {"./usr/share/doc/ovpress/sbom.spdx.json"})
    check_packages(document)
    assert document["creationInfo"]["created"] == "2023-11-14T22:13:20Z"
    inside = related(document, RelationshipType.CONTAINS)
    assert inside == {p.name for p in (root / "var/lib/dpkg/status.d").iterdir()}
    assert {"libgrpc++1.51", "libc6", "libtbb12"} <= inside
    linked = related(document, RelationshipType.STATIC_LINK)
    assert linked == {"libcli11-dev", "nlohmann-json3-dev"}, linked
    # A package that nobody installed has no place in it.
    again = c.work / "again.json"
    path.unlink()
    must(ROOT / "scripts/make-sbom", "--root", root, "--build", c.build, "--output", again, env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"})
    assert again.read_text() == (c.work / "image.spdx.json").read_text(), "two runs differ"


# --- Debian packages (with --debs) ---


def debs(c: Context) -> dict[str, pathlib.Path]:
    found = {p.name.split("_")[0]: p for p in (c.debs / "packages").glob("*.deb")}
    assert set(found) == {"ovpress", "ovpress-server", "libovpress-dev"}, found
    return found


def unpacked(c: Context, package: str) -> pathlib.Path:
    folder = c.work / "unpacked" / package
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        must("dpkg-deb", "--raw-extract", debs(c)[package], folder)
    return folder


def test_deb_depends_on_what_it_loads(c: Context):
    """Against the loader's own list, by another way than dpkg-shlibdeps."""
    for package, program in (("ovpress", "ovpress"), ("ovpress-server", "ovpress-server")):
        depends = must("dpkg-deb", "--field", debs(c)[package], "Depends")
        names = {re.match(r"[a-z0-9+.-]+", d.strip())[0] for d in depends.split(",")}
        needed = re.findall(r"\(NEEDED\).*\[(.*)\]", must("readelf", "--dynamic", unpacked(c, package) / "usr/bin" / program))
        assert len(needed) > 8, needed
        for library in needed:
            owners = {line.split(":")[0] for line in must("dpkg", "-S", f"*/{library}").splitlines()}
            provided = {n.split(" ")[0] for o in owners for n in must("dpkg-query", "-W", "-f", "${Provides}", o).split(", ")}
            assert names & (owners | provided), f"{package}: nothing in {names} has {library}"


def test_deb_contents(c: Context):
    server, client, dev = (unpacked(c, p) for p in ("ovpress-server", "ovpress", "libovpress-dev"))
    assert (server / "DEBIAN/conffiles").read_text().split() == ["/etc/ovpress/server.conf"]
    for path in ("usr/bin/ovpress-server", "usr/lib/systemd/system/ovpress-server.service", "etc/ovpress/server.conf",
                 "usr/share/man/man8/ovpress-server.8.gz", "usr/share/bash-completion/completions/ovpress-server"):
        assert (server / path).is_file(), path
    for path in ("usr/bin/ovpress", "usr/share/man/man1/ovpress.1.gz", "usr/share/zsh/vendor-completions/_ovpress", "usr/share/fish/vendor_completions.d/ovpress.fish"):
        assert (client / path).is_file(), path
    exported = {n for p in dev.rglob("ovpress-*-targets.cmake") for n in re.findall(r"add_library\(ovpress::(\w+) STATIC IMPORTED\)", p.read_text())}
    assert {"engine", "client"} <= exported and {p.stem.removeprefix("libovpress_") for p in dev.rglob("*.a")} == exported
    assert list(dev.rglob("ovpress-config.cmake")) and not list(dev.rglob("*.pb.cc"))
    # Two packages with one file would not install beside each other.
    owned = [p.relative_to(f).as_posix() for f in (server, client, dev) for p in f.rglob("*") if p.is_file() and "DEBIAN" not in p.parts]
    assert len(owned) == len(set(owned)), "a file lies in two packages"
    # The packaged configuration starts the server, and the unit gives it time to end.
    config = (server / "etc/ovpress/server.conf").read_text()
    flags = set(flags_of(c.help_of(c.server)))
    names = dict(line.split("=", 1) for line in config.splitlines() if line and not line.startswith("#"))
    assert {f"--{n}" for n in names} <= flags, names
    unit = (server / "usr/lib/systemd/system/ovpress-server.service").read_text()
    command = re.search(r"^ExecStart=(.*)$", unit, re.M)[1].split()
    assert {w.split("=")[0] for w in command[1:]} <= flags
    stop_seconds = int(re.search(r"^TimeoutStopSec=(\d+)$", unit, re.M)[1])
    assert stop_seconds > float(names["drain-seconds"]) + float(names.get("drain-delay-seconds", 0)) + 10
    for name in ("listen", "metrics"):
        assert names[name].startswith("127.0.0.1:"), "a fresh installation listens to this machine only"


def test_deb_lintian(c: Context):
    # No archive, hence no bug that announces the package.
    answer = run("lintian", "--allow-root", "--fail-on", "error,warning", "--suppress-tags", "initial-upload-closes-no-bugs", *debs(c).values())
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_deb_is_reproducible(c: Context):
    stamp = must("git", "-C", ROOT, "log", "-1", "--format=%ct").strip()
    must("cpack", "-G", "DEB", "-B", c.work / "again", cwd=c.debs, env={**os.environ, "SOURCE_DATE_EPOCH": stamp})
    first = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in debs(c).items()}
    again = {p.name.split("_")[0]: hashlib.sha256(p.read_bytes()).hexdigest() for p in (c.work / "again").glob("*.deb")}
    assert first == again


def test_deb_bills_of_materials(c: Context):
    for package, path in debs(c).items():
        document = sbom(path.with_suffix(".spdx.json"))
        folder = unpacked(c, package)
        check_packages(document)
        content = c.work / "content" / package
        shutil.copytree(folder, content, ignore=shutil.ignore_patterns("DEBIAN"))
        check_files(document, content)
        depends = must("dpkg-deb", "--field", path, "Depends").split(",")
        assert len(related(document, RelationshipType.DEPENDS_ON)) == len(depends), package
        headers = related(document, RelationshipType.BUILD_DEPENDENCY_OF)
        assert ("libsqlite3-dev" in headers) == (package == "ovpress-server"), headers
        assert ("libcli11-dev" in related(document, RelationshipType.STATIC_LINK)) == (package != "libovpress-dev")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=pathlib.Path, required=True, help="a build directory, e.g. build/ci")
    parser.add_argument("--debs", type=pathlib.Path, help="the build directory of scripts/build-deb")
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ovpress-package-") as folder:
        c = Context(arguments.build.resolve(), arguments.debs and arguments.debs.resolve(), pathlib.Path(folder))
        return run_tests(globals(), c, arguments.names, lambda name: name.startswith("test_deb_") and not c.debs)


if __name__ == "__main__":
    sys.exit(main())
