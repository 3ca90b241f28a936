"""What the client returns: plain, immutable values."""

from __future__ import annotations

import datetime
import pathlib
from dataclasses import dataclass
from typing import Callable, Dict, Optional, Tuple

from . import _messages as pb
from .errors import FailedPreconditionError, InternalError, OvpressError, error_from_status

#: Called with (phase, done, total). Phases in order: "hashing", "uploading"
#: (bytes), "queued" (place in the queue, 0), "planning", "scoring",
#: "compressing", "finishing" (bytes of the input .bin), "downloading" (bytes).
#: `done` may step back when a broken upload goes on from what the server has.
#: An exception raised by it ends the call and cancels the job.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Blob:
    """Bytes by their content."""

    sha256: str
    size_bytes: int

    @property
    def name(self) -> str:
        return f"blobs/{self.sha256}/{self.size_bytes}"


@dataclass(frozen=True)
class JobResult:
    """What a finished job left on the server; `download` fetches it."""

    xml: Blob
    bin: Blob
    #: JSON report on each weight.
    report: Blob
    bin_bytes_before: int
    bin_bytes_after: int
    weight_elements: int
    #: Bits per compressed weight, scales included.
    bits_per_weight: float
    #: Share of the ratio-defining weights in the primary precision, 0 to 1.
    primary_share: float
    #: True when the result of an earlier job was taken.
    cache_hit: bool
    engine_version: str
    warnings: Tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """A job as the server showed it at one moment."""

    #: "operations/...".
    name: str
    #: "QUEUED", "RUNNING", "SUCCEEDED", "FAILED" or "CANCELLED".
    state: str
    #: Of a running job: "planning", "scoring", "compressing", "finishing"; "done"; or empty.
    phase: str
    done: bool
    bytes_done: int
    bytes_total: int
    weights_done: int
    weights_total: int
    #: 1: next to start; 0: not queued.
    queue_position: int
    #: Expected seconds to the end; None: unknown.
    eta: Optional[float]
    #: Starts so far; more than 1 after a restart of the server.
    attempt: int
    mode: str
    request_id: str
    labels: Dict[str, str]
    priority: int
    create_time: Optional[datetime.datetime]
    start_time: Optional[datetime.datetime]
    end_time: Optional[datetime.datetime]
    expire_time: Optional[datetime.datetime]
    #: The identity that started it; empty where callers need not say who they are.
    owner: str
    warnings: Tuple[str, ...]
    #: Why it failed or was cancelled; None otherwise.
    error: Optional[OvpressError]
    #: What it made; None until it succeeded.
    outcome: Optional[JobResult]

    def result(self) -> JobResult:
        """The outcome; raises the job's error, or FailedPreconditionError if it
        is not done."""
        if self.error is not None:
            raise self.error
        if self.outcome is None:
            raise FailedPreconditionError(f"{self.name} is not done", operation=self.name)
        return self.outcome


@dataclass(frozen=True)
class Result:
    """What `compress` and `download` wrote, and what the job said."""

    #: The compressed model; its .bin beside it.
    xml: pathlib.Path
    bin: pathlib.Path
    #: The JSON report, if it was asked for.
    report: Optional[pathlib.Path]
    job: Job

    @property
    def outcome(self) -> JobResult:
        return self.job.result()

    @property
    def bits_per_weight(self) -> float:
        return self.outcome.bits_per_weight

    @property
    def bin_bytes_before(self) -> int:
        return self.outcome.bin_bytes_before

    @property
    def bin_bytes_after(self) -> int:
        return self.outcome.bin_bytes_after


@dataclass(frozen=True)
class WeightPlan:
    """What becomes of one constant."""

    name: str
    node: str
    node_type: str
    shape: Tuple[int, ...]
    from_type: str
    to_type: str
    reason: str
    group_size: int
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class Estimate:
    """The plan and its cost."""

    weights: Tuple[WeightPlan, ...]
    #: All weights of the plan, also when `weights` was cut.
    weight_count: int
    input_bin_bytes: int
    #: Equal unless ratio < 1, when the choice needs the weights.
    output_bin_bytes_min: int
    output_bin_bytes_max: int
    peak_memory_bytes: int
    disk_bytes: int
    reads_weights_twice: bool
    warnings: Tuple[str, ...]


@dataclass(frozen=True)
class ModeInfo:
    """One compression mode."""

    name: str
    bits: int
    default_group_size: int
    group_size_fixed: bool
    code_type: str
    scale_type: str


@dataclass(frozen=True)
class Capabilities:
    """What the server can do and how much it takes."""

    server_version: str
    engine_version: str
    modes: Tuple[ModeInfo, ...]
    backup_modes: Tuple[str, ...]
    group_size_fallbacks: Tuple[str, ...]
    sensitivity_metrics: Tuple[str, ...]
    max_blob_bytes: int
    max_xml_bytes: int
    chunk_bytes: int
    max_chunk_bytes: int
    max_transfers_per_client: int
    max_jobs_per_client: int
    max_memory_budget_bytes: int
    default_memory_budget_bytes: int
    #: Seconds.
    idle_timeout: float
    upload_ttl: float
    default_result_ttl: float
    max_result_ttl: float


def blob_from_proto(blob: pb.Blob) -> Blob:
    return Blob(blob.sha256, blob.size_bytes)


def blob_to_proto(blob: Blob) -> pb.Blob:
    return pb.Blob(sha256=blob.sha256, size_bytes=blob.size_bytes)


def _seconds(duration: pb.Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def _time(message: pb.CompressModelMetadata, field: str) -> Optional[datetime.datetime]:
    if not message.HasField(field):
        return None
    stamp: pb.Timestamp = getattr(message, field)
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
    return epoch + datetime.timedelta(seconds=stamp.seconds, microseconds=stamp.nanos // 1000)


# By number, for a newer server may send a value that this client does not know.
_STATES = {1: "QUEUED", 2: "RUNNING", 3: "SUCCEEDED", 4: "FAILED", 5: "CANCELLED"}
_PHASES = {1: "planning", 2: "scoring", 3: "compressing", 4: "finishing", 5: "done"}


def job_from_proto(operation: pb.Operation) -> Job:
    data = pb.CompressModelMetadata.FromString(operation.metadata.value)
    error: Optional[OvpressError] = None
    outcome: Optional[JobResult] = None
    if operation.HasField("error"):
        error = error_from_status(operation.error, operation.name)
    elif operation.HasField("response"):
        if not operation.response.type_url.endswith("/ovpress.v1.CompressModelResponse"):
            raise InternalError(f"{operation.name} has a response of type {operation.response.type_url}")
        response = pb.CompressModelResponse.FromString(operation.response.value)
        outcome = JobResult(
            xml=blob_from_proto(response.model.xml),
            bin=blob_from_proto(response.model.bin),
            report=blob_from_proto(response.report),
            bin_bytes_before=response.bin_bytes_before,
            bin_bytes_after=response.bin_bytes_after,
            weight_elements=response.weight_elements,
            bits_per_weight=response.bits_per_weight,
            primary_share=response.primary_share,
            cache_hit=response.cache_hit,
            engine_version=response.engine_version,
            warnings=tuple(response.warnings),
        )
    return Job(
        name=operation.name,
        state=_STATES.get(data.state, str(data.state)),
        phase=_PHASES.get(data.phase, ""),
        done=operation.done,
        bytes_done=data.bytes_done,
        bytes_total=data.bytes_total,
        weights_done=data.weights_done,
        weights_total=data.weights_total,
        queue_position=data.queue_position,
        eta=_seconds(data.eta) if data.HasField("eta") else None,
        attempt=data.attempt,
        mode=data.options.mode,
        request_id=data.request_id,
        labels=dict(data.labels),
        priority=data.priority,
        create_time=_time(data, "create_time"),
        start_time=_time(data, "start_time"),
        end_time=_time(data, "end_time"),
        expire_time=_time(data, "expire_time"),
        owner=data.owner,
        warnings=tuple(data.warnings),
        error=error,
        outcome=outcome,
    )


def estimate_from_proto(response: pb.EstimateCompressionResponse) -> Estimate:
    return Estimate(
        weights=tuple(
            WeightPlan(
                name=weight.name,
                node=weight.node,
                node_type=weight.node_type,
                shape=tuple(weight.shape),
                from_type=weight.from_type,
                to_type=weight.to_type,
                reason=weight.reason,
                group_size=weight.group_size,
                bytes_before=weight.bytes_before,
                bytes_after=weight.bytes_after,
            )
            for weight in response.weights
        ),
        weight_count=response.weight_count,
        input_bin_bytes=response.input_bin_bytes,
        output_bin_bytes_min=response.output_bin_bytes_min,
        output_bin_bytes_max=response.output_bin_bytes_max,
        peak_memory_bytes=response.peak_memory_bytes,
        disk_bytes=response.disk_bytes,
        reads_weights_twice=response.reads_weights_twice,
        warnings=tuple(response.warnings),
    )


def capabilities_from_proto(response: pb.GetCapabilitiesResponse) -> Capabilities:
    return Capabilities(
        server_version=response.server_version,
        engine_version=response.engine_version,
        modes=tuple(
            ModeInfo(m.name, m.bits, m.default_group_size, m.group_size_fixed, m.code_type, m.scale_type)
            for m in response.modes
        ),
        backup_modes=tuple(response.backup_modes),
        group_size_fallbacks=tuple(response.group_size_fallbacks),
        sensitivity_metrics=tuple(response.sensitivity_metrics),
        max_blob_bytes=response.max_blob_bytes,
        max_xml_bytes=response.max_xml_bytes,
        chunk_bytes=response.chunk_bytes,
        max_chunk_bytes=response.max_chunk_bytes,
        max_transfers_per_client=response.max_transfers_per_client,
        max_jobs_per_client=response.max_jobs_per_client,
        max_memory_budget_bytes=response.max_memory_budget_bytes,
        default_memory_budget_bytes=response.default_memory_budget_bytes,
        idle_timeout=_seconds(response.idle_timeout),
        upload_ttl=_seconds(response.upload_ttl),
        default_result_ttl=_seconds(response.default_result_ttl),
        max_result_ttl=_seconds(response.max_result_ttl),
    )
