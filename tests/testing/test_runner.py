"""Runs the functions of a module that are named test_..., and counts."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Collection


def run_tests(module: dict, context: object, names: Collection[str] = (), leave_out: Callable[[str], bool] = lambda name: False) -> int:
    """Calls each with the context, in the order of the file; with `names` only
    those. Prints a line for each and "N passed, N failed" at last; returns the
    exit status, 1 also if there was nothing to run."""
    passed = failed = 0
    for name, test in list(module.items()):
        if not name.startswith("test_") or (names and name not in names) or leave_out(name):
            continue
        begin = time.monotonic()
        try:
            test(context)
            passed += 1
            print(f"ok   {name} ({time.monotonic() - begin:.1f} s)", flush=True)
        except Exception:
            failed += 1
            print(f"FAIL {name}\n{traceback.format_exc()}", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0
