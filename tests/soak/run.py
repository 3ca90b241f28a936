#!/usr/bin/env python3
"""The soak: many kinds of clients on one server that is killed, drained and
starved meanwhile, then left alone and watched for growth.

  tests/soak/run.py --build build/ci [--seconds 3600] [--kills N] [--seed S]

With --kills only the kill trials are run: N of them (see kills.py); else the
mixed soak (see mixed.py). The last line is "N passed, N failed"."""

from __future__ import annotations

import argparse
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import kills  # noqa: E402
import mixed  # noqa: E402
import world  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--seconds", type=float, default=3600, help="how long the mixed soak takes")
    parser.add_argument("--kills", type=int, default=0, help="run so many kill trials instead")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="servers at a time in the kill trials")
    parser.add_argument("phases", nargs="*", help=f"of the kill trials: {' '.join(kills.PHASES)}")
    arguments = parser.parse_args()
    unknown = set(arguments.phases) - set(kills.PHASES)
    if unknown:
        parser.error(f"no such phase: {' '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory(prefix="ovpress-soak-") as name:
        work = pathlib.Path(name)
        (work / "stubs").mkdir()
        world.integration.generate_stubs(work / "stubs")
        build = arguments.build.resolve()
        if arguments.kills:
            ok = kills.run(build, work, arguments.kills, arguments.seed, arguments.workers, arguments.phases)
        else:
            ok = mixed.run(build, work, arguments.seconds, arguments.seed)
    print("1 passed, 0 failed" if ok else "0 passed, 1 failed")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
