"""Compression options under NNCF's names, and their way onto the wire.

Values may be plain strings or NNCF's own enums and objects; nncf is never
imported, its objects are only looked at."""

from __future__ import annotations

import datetime
import enum
import io
import json
import pathlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, FrozenSet, List, Mapping, Optional, Sequence, TypedDict, Union

from . import _messages as pb

if TYPE_CHECKING:
    import os


@dataclass
class IgnoredScope:
    """What to leave as it is; the fields are those of nncf.IgnoredScope."""

    #: Exact names of nodes or constants.
    names: List[str] = field(default_factory=list)
    #: Regular expressions, matched at the start of a name.
    patterns: List[str] = field(default_factory=list)
    #: Operation types such as "MatMul".
    types: List[str] = field(default_factory=list)
    #: A rule that matches nothing is an error.
    validate: bool = True


class CompressionKeywords(TypedDict, total=False):
    """The arguments of nncf.compress_weights, and a few of ovpress. None, or
    not given, means NNCF's default, which for some depends on the mode."""

    #: "int8_asym" (the default), "int4_sym", "nf4" ...; see `capabilities().modes`.
    mode: Union[str, enum.Enum]
    #: Share of the weights in the primary precision, 0 to 1.
    ratio: Optional[float]
    #: Elements that share one scale; -1: per channel.
    group_size: Optional[int]
    #: An IgnoredScope, NNCF's or ours, or a mapping with its fields.
    ignored_scope: Any
    #: Embeddings and the last layer in the primary precision too.
    all_layers: Optional[bool]
    #: How weights are ranked when ratio < 1: "weight_quantization_error".
    sensitivity_metric: Union[str, enum.Enum, None]
    #: Rescale input channels first, without data.
    awq: Optional[bool]
    #: Precision of what is not primary: "none", "int8_asym", "int8_sym" ...
    backup_mode: Union[str, enum.Enum, None]
    #: nncf.AdvancedCompressionParameters: its group_size_fallback_mode,
    #: min_adjusted_group_size and codebook count.
    advanced_parameters: Any
    #: "error", "ignore" or "adjust" when a channel is no multiple of the group size.
    group_size_fallback_mode: Union[str, enum.Enum, None]
    #: Smallest group that "adjust" may choose.
    min_adjusted_group_size: Optional[int]
    #: For mode "codebook": a sequence of numbers, a NumPy array, or the path of
    #: a .json or .npy file.
    codebook: Any
    #: With awq: also where NNCF has no pattern but the function stays the same.
    awq_extended: bool
    #: Compress NaN and infinite weights instead of refusing them.
    allow_non_finite: bool
    # NNCF's arguments that need data or have one supported value: accepted when
    # they ask for nothing, so that a call can be taken over as it is.
    dataset: None
    subset_size: int
    scale_estimation: Optional[bool]
    gptq: Optional[bool]
    lora_correction: Optional[bool]
    compression_format: Union[str, enum.Enum, None]


class JobKeywords(CompressionKeywords, total=False):
    """How to run the job; none of these changes the compressed bytes."""

    #: The .bin, if it is not beside the .xml.
    weights: "Union[str, os.PathLike[str], None]"
    #: Makes the call repeatable: the same id is the same job, and a repeated
    #: call goes on with the upload that an ended process left. At most 64 of
    #: [A-Za-z0-9._-]. Not given: a new one, for the retries within the call.
    request_id: Optional[str]
    #: Working memory in bytes; not given: the server's default.
    memory_budget: Optional[int]
    #: Measure the relative error of each weight for the report.
    measure_error: bool
    #: -100 to 100, higher first.
    priority: int
    #: Free text for `list(filter=...)`.
    labels: Optional[Mapping[str, str]]
    #: Seconds (or timedelta) that the finished job and its result are kept.
    ttl: Union[float, datetime.timedelta, None]
    #: Seconds (or timedelta) from the job's start to its end.
    max_run_time: Union[float, datetime.timedelta, None]
    #: Do not answer from the server's cache of results.
    ignore_result_cache: bool
    #: "s3://bucket/key.xml": the server also writes the result there.
    output_address: Optional[str]


_COMPRESSION: FrozenSet[str] = frozenset(CompressionKeywords.__annotations__)
_JOB: FrozenSet[str] = _COMPRESSION | frozenset(JobKeywords.__annotations__)
_CODEBOOK_BYTES_MAX = 1 << 20


def check_keywords(given: Mapping[str, Any], *, job: bool) -> None:
    """TypeError for a name that is none of ours, as a plain signature would."""
    unknown = sorted(set(given) - (_JOB if job else _COMPRESSION))
    if unknown:
        raise TypeError(f"unexpected keyword argument {unknown[0]!r}")


def _text(value: Any) -> str:
    """The lower-case name that NNCF's enums and plain strings stand for."""
    if isinstance(value, enum.Enum):
        value = value.value
    if not isinstance(value, str):
        raise TypeError(f"expected a string or one of NNCF's enums, not {value!r}")
    return value


def _scope(value: Any) -> pb.IgnoredScope:
    def get(name: str, default: Any) -> Any:
        if isinstance(value, Mapping):
            return value.get(name, default)
        return getattr(value, name, default)

    if isinstance(value, Mapping):
        unknown = sorted(set(value) - {"names", "patterns", "types", "subgraphs", "validate"})
        if unknown:
            raise TypeError(f"ignored_scope has no field {unknown[0]!r}")
    elif not all(hasattr(value, name) for name in ("names", "patterns", "types")):
        raise TypeError(f"ignored_scope must be an IgnoredScope or a mapping, not {value!r}")
    if get("subgraphs", None):
        raise ValueError("ignored_scope.subgraphs is not supported; list the names instead")
    lists = {}
    for name in ("names", "patterns", "types"):
        items = get(name, ()) or ()
        if isinstance(items, str):
            raise TypeError(f"ignored_scope.{name} must be a list of strings")
        lists[name] = [str(item) for item in items]
    return pb.IgnoredScope(allow_unmatched=not get("validate", True), **lists)


def _codebook(value: Any) -> bytes:
    """The content of a codebook file."""
    if isinstance(value, bytes):
        content = value
    elif isinstance(value, (str, pathlib.PurePath)):
        content = pathlib.Path(value).read_bytes()
    elif hasattr(value, "dtype") and hasattr(value, "tobytes"):
        import numpy  # whoever has an array has numpy

        buffer = io.BytesIO()
        numpy.save(buffer, numpy.asarray(value), allow_pickle=False)
        content = buffer.getvalue()
    elif isinstance(value, Sequence):
        content = json.dumps([float(number) for number in value]).encode()
    else:
        raise TypeError("codebook must be numbers, a NumPy array, or the path of a .json or .npy file")
    if len(content) > _CODEBOOK_BYTES_MAX:
        raise ValueError(f"codebook of {len(content)} bytes, at most {_CODEBOOK_BYTES_MAX}")
    return content


def _refuse_data_options(given: Mapping[str, Any]) -> None:
    for name in ("dataset", "scale_estimation", "gptq", "lora_correction"):
        if given.get(name):
            raise ValueError(f"{name} needs calibration data; ovpress compresses without any")
    form = given.get("compression_format")
    if form is not None and _text(form) != "dequantize":
        raise ValueError(f"compression_format {_text(form)!r} is not supported; only 'dequantize' is")


def options_to_proto(given: Mapping[str, Any]) -> pb.CompressionOptions:
    """TypeError, ValueError for what cannot be said on the wire; whether values
    fit together is the server's to judge."""
    _refuse_data_options(given)
    given = dict(given)
    advanced = given.get("advanced_parameters")
    if advanced is not None:
        if getattr(advanced, "statistics_path", None):
            raise ValueError("advanced_parameters.statistics_path is not supported: no statistics are made")
        for name in ("group_size_fallback_mode", "min_adjusted_group_size", "codebook"):
            if given.get(name) is None:
                given[name] = getattr(advanced, name, None)
    proto = pb.CompressionOptions(mode=_text(given.get("mode") or "int8_asym"))
    if given.get("ratio") is not None:
        proto.ratio = float(given["ratio"])
    if given.get("group_size") is not None:
        proto.group_size = int(given["group_size"])
    if given.get("backup_mode") is not None:
        proto.backup_mode = _text(given["backup_mode"])
    if given.get("all_layers") is not None:
        proto.all_layers = bool(given["all_layers"])
    if given.get("sensitivity_metric") is not None:
        proto.sensitivity_metric = _text(given["sensitivity_metric"])
    if given.get("ignored_scope") is not None:
        proto.ignored_scope.CopyFrom(_scope(given["ignored_scope"]))
    if given.get("group_size_fallback_mode") is not None:
        proto.group_size_fallback = _text(given["group_size_fallback_mode"])
    if given.get("min_adjusted_group_size") is not None:
        proto.min_adjusted_group_size = int(given["min_adjusted_group_size"])
    if given.get("awq") is not None:
        proto.awq = bool(given["awq"])
    proto.awq_extended = bool(given.get("awq_extended"))
    proto.allow_non_finite = bool(given.get("allow_non_finite"))
    if given.get("codebook") is not None:
        proto.codebook = _codebook(given["codebook"])
    return proto


def _duration(value: Union[float, datetime.timedelta]) -> pb.Duration:
    microseconds = round((value.total_seconds() if isinstance(value, datetime.timedelta) else float(value)) * 1e6)
    return pb.Duration(seconds=microseconds // 1_000_000, nanos=microseconds % 1_000_000 * 1000)


def settings_to_proto(given: Mapping[str, Any]) -> pb.RunSettings:
    return pb.RunSettings(
        memory_budget_bytes=int(given.get("memory_budget") or 0), measure_error=bool(given.get("measure_error"))
    )


def request_to_proto(given: Mapping[str, Any]) -> pb.CompressModelRequest:
    """The whole request but for the model."""
    request = pb.CompressModelRequest(
        request_id=given.get("request_id") or "",
        options=options_to_proto(given),
        settings=settings_to_proto(given),
        priority=int(given.get("priority") or 0),
        labels={str(key): str(value) for key, value in (given.get("labels") or {}).items()},
        ignore_result_cache=bool(given.get("ignore_result_cache")),
    )
    if given.get("ttl") is not None:
        request.ttl.CopyFrom(_duration(given["ttl"]))
    if given.get("max_run_time") is not None:
        request.max_run_time.CopyFrom(_duration(given["max_run_time"]))
    if given.get("output_address"):
        request.output_address.CopyFrom(pb.ModelAddress(xml=str(given["output_address"])))
    return request
