#!/usr/bin/env python3
"""Conformance with NNCF: every model x option set, NNCF's result against ours.

  run.py --ovpress BUILD/client/cli/ovpress [--level quick|full] [--groups int,awq]
         [--filter REGEX] [--jobs 2] [--server HOST:PORT] [--keep-failures DIR]
  run.py --self-test     the comparer sees differences; needs no ovpress

The definition of "the same result" is in compare.py. Prints what failed, the
counts of each group, and as the last line `N passed, N failed`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
ROOT = pathlib.Path(__file__).resolve().parents[2]
# A case takes well below a second; this only ends a hung program.
TIMEOUT_S = 300


@dataclass
class Outcome:
    case: object
    passed: bool
    notes: list[str] = field(default_factory=list)
    command: str = ""
    inferred: bool = False
    judge_s: float = 0.0
    ours_s: float = 0.0
    differs: bool = False  # on purpose
    refused: bool = False  # by both


class Worker:
    """One process: a judge, and the program under test as a subprocess."""

    def __init__(self, ovpress: list[str], work: pathlib.Path, arguments: argparse.Namespace):
        import oracle

        self.work = pathlib.Path(tempfile.mkdtemp(prefix="worker-", dir=work))
        self.oracle = oracle.Oracle(self.work, arguments.cache, arguments.plain_nncf)
        self.ovpress = ovpress
        self.arguments = arguments
        self._given: dict[pathlib.Path, set[str]] = {}

    def given_names(self, path: pathlib.Path) -> set[str]:
        import ir_xml

        if path not in self._given:
            self._given[path] = {layer.name for layer in ir_xml.read(path).layers.values()}
        return self._given[path]

    def run(self, case) -> Outcome:
        import differences

        begin = time.monotonic()
        verdict = self.oracle.judge(case.path, case.options)
        judged = time.monotonic()
        out_dir = self.work / "out"
        shutil.rmtree(out_dir, ignore_errors=True)
        out_dir.mkdir()
        command = self.ovpress + ["compress", str(case.path), "-o", str(out_dir / "model.xml"), "--quiet"]
        command += case.options.flags(self.work)
        if self.arguments.server:
            command += ["--server", self.arguments.server]
        before = [(p, p.stat().st_mtime_ns, p.stat().st_size) for p in (case.path, case.path.with_suffix(".bin")) if p.exists()]
        try:
            process = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, text=True, errors="replace")
            notes = self._check(case, verdict, process, out_dir)
        except subprocess.TimeoutExpired:
            notes = [f"no end after {TIMEOUT_S} s"]
        if before != [(p, p.stat().st_mtime_ns, p.stat().st_size) for p, _, _ in before]:
            notes.append("the input was changed")
        inferred = False
        if not notes and verdict.error is None and case.infer:
            import inference

            found = inference.compare(self.oracle.core, verdict.xml, out_dir / "model.xml")
            inferred = found is not None
            notes += found or []
        outcome = Outcome(case, not notes, notes, shlex.join(command), inferred, judged - begin, time.monotonic() - judged)
        outcome.refused = verdict.error is not None and outcome.passed
        difference = differences.reason(case, verdict.error)
        if difference is not None:
            outcome.differs = bool(notes)
            beyond = [note for note in notes if not re.match(difference.only, note)]
            outcome.passed = not beyond and (bool(notes) or difference.may_agree)
            if outcome.passed:
                outcome.notes = []
            else:
                outcome.notes = beyond or [f"agrees with NNCF though '{difference.id}' says that it differs on purpose"]
        if not outcome.passed and self.arguments.keep_failures:
            self._keep(case, verdict, out_dir, outcome)
        return outcome

    def _check(self, case, verdict, process, out_dir: pathlib.Path) -> list[str]:
        import compare
        import ir_xml

        files = sorted(p.name for p in out_dir.iterdir())
        errors = [line for line in process.stderr.splitlines() if line.strip()]
        if verdict.error is not None:
            notes = []
            if process.returncode == 0:
                return [f"succeeds, NNCF refuses: {verdict.error}"]
            if process.returncode not in (1, 2):
                notes.append(f"exit status {process.returncode}")
            if len(errors) != 1:
                notes.append(f"{len(errors)} lines on stderr, expected one: {errors[:3]}")
            if files:
                notes.append(f"left behind: {files}")
            return notes
        if process.returncode != 0:
            return [f"exit status {process.returncode}, NNCF succeeds: {' / '.join(errors[-2:])}"]
        if files not in (["model.bin", "model.xml"], ["model.xml"]):
            return [f"output files {files}"]
        ours_xml = out_dir / "model.xml"
        ours_raw = ir_xml.read(ours_xml)
        theirs_raw = ir_xml.read(verdict.xml)
        # OpenVINO's view of both files: read and written once more.
        try:
            ours = ir_xml.read(self.oracle.rewrite(ours_xml, self.work / "ours-again.xml"))
        except Exception as error:
            return [f"OpenVINO does not read it: {str(error).strip().splitlines()[-1]}"]
        theirs = ir_xml.read(self.oracle.rewrite(verdict.xml, self.work / "nncf-again.xml"))
        notes = compare.compare(theirs, ours, self.given_names(case.path))
        # As written, before OpenVINO tidied it up.
        notes += [note for note in compare.unique_names(ours_raw, theirs_raw) if note not in notes]
        kinds = {layer.name: layer.attributes.get("element_type") for layer in ours_raw.of_type("Const")}
        # What NNCF's own test suite expects, unless this release gives otherwise.
        judged = {layer.name: layer.attributes.get("element_type") for layer in theirs_raw.of_type("Const")}
        for name, kind in case.expect_types:
            if kinds.get(name) != kind == judged.get(name):
                notes.append(f"NNCF's own test expects '{name}' as {kind}, it is {kinds.get(name)}")
        for kind, count in case.expect_counts:
            if list(kinds.values()).count(kind) != count == list(judged.values()).count(kind):
                notes.append(f"NNCF's own test expects {count} constants of {kind}, there are {list(kinds.values()).count(kind)}")
        return notes

    def _keep(self, case, verdict, out_dir: pathlib.Path, outcome: Outcome) -> None:
        target = self.arguments.keep_failures / re.sub(r"[^A-Za-z0-9_.=,-]+", "_", case.name)[:150]
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for source, name in ((case.path, "input"), (verdict.xml, "nncf"), (out_dir / "model.xml", "ours")):
            for suffix in (".xml", ".bin"):
                if source is not None and source.with_suffix(suffix).exists():
                    shutil.copy(source.with_suffix(suffix), target / f"{name}{suffix}")
        text = [case.name, outcome.command, f"NNCF: {verdict.error or 'succeeds'}"] + outcome.notes
        (target / "notes.txt").write_text("\n".join(text) + "\n")


def _serve(connection, ovpress, work, arguments) -> None:
    """A worker process: takes cases from its pipe, sends outcomes back."""
    # NNCF prints tables and bars; results travel through the pipe, not stdout.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    worker = Worker(ovpress, work, arguments)
    while (case := connection.recv()) is not None:
        try:
            outcome = worker.run(case)
        except Exception as error:  # a defect of the suite must not hide the case
            outcome = Outcome(case, False, [f"the suite itself failed: {type(error).__name__}: {error}"])
        connection.send(outcome)


class Pool:
    """Worker processes that may die: OpenVINO crashes on some graphs. The case
    fails, the others go on. (multiprocessing.Pool would wait for ever.)"""

    def __init__(self, size: int, arguments: tuple):
        self._context = multiprocessing.get_context("spawn")
        self._arguments = arguments
        self._size = size

    def _start(self):
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, *self._arguments), daemon=True)
        process.start()
        theirs.close()
        return process, ours

    def run(self, cases: list):
        waiting = list(reversed(cases))
        busy = {}
        for _ in range(min(self._size, len(cases))):
            process, pipe = self._start()
            busy[pipe] = (process, waiting.pop())
            pipe.send(busy[pipe][1])
        while busy:
            for pipe in multiprocessing.connection.wait(list(busy), timeout=2 * TIMEOUT_S) or list(busy):
                process, case = busy.pop(pipe)
                try:
                    if not pipe.poll():
                        process.kill()
                    outcome = pipe.recv()
                except (EOFError, ConnectionResetError):
                    process.join()
                    outcome = Outcome(case, False, [f"the process that judged and ran the models ended with {process.exitcode}"])
                    process, pipe = self._start()
                    if case.infer:
                        # OpenVINO crashed while it ran the models; the files are compared all the same.
                        print(f"note: {case.name}: running the models ended with a crash of the plugin", flush=True)
                        waiting.append(dataclasses.replace(case, infer=False))
                        outcome = None
                if outcome is not None:
                    yield outcome
                if waiting:
                    busy[pipe] = (process, waiting.pop())
                    pipe.send(busy[pipe][1])
                else:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.send(None)


@contextlib.contextmanager
def quiet_stdout():
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)


def parse() -> argparse.Namespace:
    import cases

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ovpress", help="the program under test")
    parser.add_argument("--server", help="HOST:PORT; every case runs through `ovpress compress --server`")
    parser.add_argument("--level", choices=("quick", "full"), default="quick")
    parser.add_argument("--groups", default=",".join(cases.GROUPS), help="of " + ", ".join(cases.GROUPS))
    parser.add_argument("--first-seed", type=int, default=0, metavar="N", help="the group random takes seeds from N on: other graphs than in the daily run")
    parser.add_argument("--filter", default="", help="regular expression, searched in group/model/options")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--keep-failures", type=pathlib.Path, metavar="DIR")
    parser.add_argument("--cache", type=pathlib.Path, metavar="DIR", help="keep NNCF's results there between runs")
    parser.add_argument("--plain-nncf", action="store_true", help="do not quicken NNCF")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    parser.add_argument("--show", type=int, default=40, metavar="N", help="failures to print")
    parser.add_argument("--self-test", action="store_true")
    arguments = parser.parse_args()
    unknown = set(arguments.groups.split(",")) - set(cases.GROUPS)
    if unknown:
        parser.error(f"unknown groups: {sorted(unknown)}")
    if not arguments.ovpress and not arguments.self_test and not arguments.list:
        parser.error("--ovpress is required")
    return arguments


def digest(outcomes: list[Outcome], show: int) -> None:
    """Failures grouped by their first difference, so that one cause reads once."""
    failed = [outcome for outcome in outcomes if not outcome.passed]
    groups: dict[str, list[Outcome]] = {}
    for outcome in failed:
        # Quoted names and numbers vary from case to case.
        shape = re.sub(r"'[^']*'|\d+|[0-9a-f]{2}( [0-9a-f]{2})+", "*", outcome.notes[0])[:90]
        groups.setdefault(shape, []).append(outcome)
    shown = 0
    for _, members in sorted(groups.items(), key=lambda item: -len(item[1])):
        if shown >= show:
            break
        print(f"\n{len(members)} x {members[0].notes[0]}")
        for outcome in members[:4]:
            shown += 1
            print(f"  {outcome.case.name}")
            for note in outcome.notes[:4]:
                print(f"    {note}")
            print(f"    $ {outcome.command}")


def main() -> int:
    arguments = parse()
    if arguments.self_test:
        import self_test

        return self_test.main()
    import cases
    import differences

    begin = time.monotonic()
    missing_text = differences.undocumented(ROOT)
    for entry in missing_text:
        print(f"docs/nncf-differences.md does not mention '{entry}'")
    with tempfile.TemporaryDirectory(prefix="ovpress-conformance-") as directory:
        work = pathlib.Path(directory)
        model_dir = work / "models"
        model_dir.mkdir()
        with quiet_stdout():
            catalogue = cases.Catalogue(ROOT, model_dir, arguments.level, set(arguments.groups.split(",")), arguments.first_seed).build()
        for text in catalogue.missing:
            print(f"left out: {text}")
        chosen = [case for case in catalogue.cases if re.search(arguments.filter, case.name)]
        if arguments.list:
            print("\n".join(case.name for case in chosen))
            return 0
        if not chosen:
            print("no case fits")
            return 2
        if arguments.keep_failures:
            arguments.keep_failures = arguments.keep_failures.resolve()
        # Cases of one model together, so that compiled helpers are reused; large
        # models first, so that the workers end at about the same time.
        chosen.sort(key=lambda case: (not case.model.startswith("ppocr"), case.model))
        outcomes: list[Outcome] = []
        ovpress = [str(pathlib.Path(arguments.ovpress).resolve())]
        for outcome in Pool(arguments.jobs, (ovpress, work, arguments)).run(chosen):
            outcomes.append(outcome)
        outcomes.sort(key=lambda outcome: outcome.case.name)
    digest(outcomes, arguments.show)
    print()
    for group in cases.GROUPS:
        members = [outcome for outcome in outcomes if outcome.case.group == group]
        if members:
            good = sum(outcome.passed for outcome in members)
            print(f"{group:10} {good:5} passed {len(members) - good:5} failed {sum(o.inferred for o in members):5} inferred")
    deliberate = sum(outcome.differs for outcome in outcomes)
    print(f"{sum(outcome.refused for outcome in outcomes)} of them are refused by both")
    if deliberate:
        print(f"{deliberate} of them differ on purpose, as docs/nncf-differences.md says")
    print(
        f"{time.monotonic() - begin:.0f} s, of which per worker NNCF {sum(o.judge_s for o in outcomes) / arguments.jobs:.0f} s, "
        f"ovpress and comparing {sum(o.ours_s for o in outcomes) / arguments.jobs:.0f} s"
    )
    failed = sum(not outcome.passed for outcome in outcomes) + len(missing_text)
    print(f"{len(outcomes) - failed + len(missing_text)} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
