"""Cases that differ from NNCF on purpose.

Each has the id of a section of docs/nncf-differences.md, which says what
differs and why; the suite checks that the id stands there. A case listed here
fails if it stops differing.
"""

from __future__ import annotations

import pathlib
from dataclasses import dataclass
from typing import Callable

from cases import Case


@dataclass(frozen=True)
class Difference:
    id: str
    applies: Callable[[Case], bool]


DIFFERENCES: list[Difference] = []


def reason(case: Case) -> str | None:
    """The id of the documented difference that covers this case."""
    for difference in DIFFERENCES:
        if difference.applies(case):
            return difference.id
    return None


def undocumented(root: pathlib.Path) -> list[str]:
    document = root / "docs/nncf-differences.md"
    text = document.read_text() if document.exists() else ""
    return [difference.id for difference in DIFFERENCES if difference.id not in text]
