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
    # Only where NNCF fails with an error that holds this text.
    nncf_error: str | None = None
    # NNCF's result is right for some inputs or in some runs.
    may_agree: bool = False
    # All that differs matches this.
    only: str = ""


DIFFERENCES: list[Difference] = [
    Difference("duplicate-names", lambda case: True, nncf_error="More than one node in NNCFGraph matches name", may_agree=True),
    Difference("score-of-vectors", lambda case: case.options.ratio not in (None, 0.0, 1.0), nncf_error="axes_et.is_integral_number", may_agree=True),
    Difference("near-ties", lambda case: case.model == "near_ties_large" and case.options.ratio not in (None, 0.0, 1.0), may_agree=True),
    Difference("duplicate-names", lambda case: case.model.endswith("-equal_names"), nncf_error="Cannot add edge", may_agree=True),
    Difference("low-bit-types", lambda case: True, nncf_error="NNCF is not yet supported OpenVINO data type"),
    Difference("empty-weights", lambda case: case.model == "empty_weight", nncf_error="zero-size array"),
    Difference("codebook-without-its-mode", lambda case: case.options.codebook is not None and case.options.mode != "codebook", may_agree=True),
    Difference("codebook-integers", lambda case: case.options.codebook in ("i8_all", "u8_wide", "i16_wide"), may_agree=True),
    Difference("codebook-not-finite", lambda case: case.options.codebook == "nan", may_agree=True),
    Difference("adaptive-codebook", lambda case: case.options.mode == "adaptive_codebook", may_agree=True),
    Difference("rt-info-rewritten", lambda case: case.model.startswith("compressed_before") and bool(case.options.names or case.options.patterns or case.options.types), may_agree=True, only="rt_info nncf/weight_compression/"),
    Difference("group-size-checked-early", lambda case: case.options.group_size is not None and (case.options.group_size == 0 or case.options.group_size < -1), may_agree=True),
    Difference("awq-several-readers", lambda case: bool(case.options.awq) and case.model in ("awq_multi_consumer", "awq_act_with_result"), may_agree=True),
    Difference("awq-merge-choice", lambda case: bool(case.options.awq) and case.model == "awq_two_matmuls_multiply", may_agree=True),
    Difference("awq-bf16-rounding", lambda case: bool(case.options.awq) and case.model == "awq_gated_bf16", may_agree=True),
]


def reason(case: Case, nncf_error: str | None) -> Difference | None:
    """The documented difference that covers this case."""
    for difference in DIFFERENCES:
        if difference.nncf_error is not None and difference.nncf_error not in (nncf_error or ""):
            continue
        if difference.applies(case):
            return difference
    return None


def undocumented(root: pathlib.Path) -> list[str]:
    document = root / "docs/nncf-differences.md"
    text = document.read_text() if document.exists() else ""
    return [difference.id for difference in DIFFERENCES if difference.id not in text]
