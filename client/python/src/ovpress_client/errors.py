"""What can go wrong, as exceptions: one class per gRPC code, with the details
that the server sent (google.rpc.ErrorInfo, RetryInfo, QuotaFailure,
PreconditionFailure, BadRequest)."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple, Type

import grpc

from . import _messages as pb


class Code(enum.IntEnum):
    """The codes of gRPC."""

    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


@dataclass(frozen=True)
class Violation:
    """One limit that was met, one condition that does not hold, or one field
    that is wrong."""

    #: "quota", "precondition" or "field".
    kind: str
    #: Whose limit ("server", "client:NAME"), which blob ("blobs/..."), or which field.
    subject: str
    description: str
    #: Of a precondition: "MISSING" for a blob that must be uploaded.
    type: str = ""


class OvpressError(Exception):
    """An error of a call or of a job. The text is the server's, one line."""

    #: The code of the class; `OvpressError` itself is never raised by a call.
    default_code: Code = Code.UNKNOWN

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        domain: str = "",
        metadata: Optional[Mapping[str, str]] = None,
        violations: Sequence[Violation] = (),
        retry_after: Optional[float] = None,
        operation: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        #: The cause for programs: "BLOBS_MISSING", "LIMIT_MAX_QUEUED", "DRAINING" ...
        self.reason = reason
        #: Who defined the reason: "ovpress"; empty if the server said nothing.
        self.domain = domain
        #: Details such as the name of the limit and its value.
        self.metadata: Dict[str, str] = dict(metadata or {})
        self.violations: Tuple[Violation, ...] = tuple(violations)
        #: Seconds before another try can succeed; None: the server did not say.
        self.retry_after = retry_after
        #: The job concerned, "operations/..."; empty if there is none. After a
        #: failed `compress` it tells what to `watch` or `download` later.
        self.operation = operation

    @property
    def code(self) -> Code:
        return self.default_code


class CancelledError(OvpressError):
    """The job was cancelled, or the call was."""

    default_code = Code.CANCELLED


class UnknownError(OvpressError):
    default_code = Code.UNKNOWN


class InvalidArgumentError(OvpressError):
    """The request is wrong whatever the state: an option, a digest, a limit."""

    default_code = Code.INVALID_ARGUMENT


class DeadlineExceededError(OvpressError):
    """The call or the job took too long."""

    default_code = Code.DEADLINE_EXCEEDED


class NotFoundError(OvpressError):
    """No such job or blob, or not yours."""

    default_code = Code.NOT_FOUND


class AlreadyExistsError(OvpressError):
    """The request_id was used with other arguments."""

    default_code = Code.ALREADY_EXISTS


class PermissionDeniedError(OvpressError):
    default_code = Code.PERMISSION_DENIED


class ResourceExhaustedError(OvpressError):
    """A limit was met; `violations` and `metadata` name it, `retry_after` says
    when to come back."""

    default_code = Code.RESOURCE_EXHAUSTED


class FailedPreconditionError(OvpressError):
    """Not in this state: blobs are missing, the job is not done."""

    default_code = Code.FAILED_PRECONDITION


class AbortedError(OvpressError):
    default_code = Code.ABORTED


class OutOfRangeError(OvpressError):
    default_code = Code.OUT_OF_RANGE


class UnimplementedError(OvpressError):
    """Valid, but not supported by this server."""

    default_code = Code.UNIMPLEMENTED


class InternalError(OvpressError):
    default_code = Code.INTERNAL


class UnavailableError(OvpressError):
    """The server was away for as long as `retry_timeout`."""

    default_code = Code.UNAVAILABLE


class DataLossError(OvpressError):
    """The model contradicts itself, or bytes are not those of their digest."""

    default_code = Code.DATA_LOSS


class UnauthenticatedError(OvpressError):
    """No token, or one that the server does not know."""

    default_code = Code.UNAUTHENTICATED


_CLASSES: Dict[int, Type[OvpressError]] = {
    int(error.default_code): error
    for error in (
        CancelledError,
        UnknownError,
        InvalidArgumentError,
        DeadlineExceededError,
        NotFoundError,
        AlreadyExistsError,
        PermissionDeniedError,
        ResourceExhaustedError,
        FailedPreconditionError,
        AbortedError,
        OutOfRangeError,
        UnimplementedError,
        InternalError,
        UnavailableError,
        DataLossError,
        UnauthenticatedError,
    )
}


def error_from_status(status: pb.Status, operation: str = "") -> OvpressError:
    """The exception for a google.rpc.Status, details included."""
    info = pb.ErrorInfo()
    violations = []
    retry_after: Optional[float] = None
    for detail in status.details:
        kind = detail.type_url.rpartition("/")[2]
        if kind == "google.rpc.ErrorInfo":
            info = pb.ErrorInfo.FromString(detail.value)
        elif kind == "google.rpc.RetryInfo":
            delay = pb.RetryInfo.FromString(detail.value).retry_delay
            retry_after = delay.seconds + delay.nanos / 1e9
        elif kind == "google.rpc.QuotaFailure":
            for quota in pb.QuotaFailure.FromString(detail.value).violations:
                violations.append(Violation("quota", quota.subject, quota.description))
        elif kind == "google.rpc.PreconditionFailure":
            for condition in pb.PreconditionFailure.FromString(detail.value).violations:
                violations.append(Violation("precondition", condition.subject, condition.description, condition.type))
        elif kind == "google.rpc.BadRequest":
            for field in pb.BadRequest.FromString(detail.value).field_violations:
                violations.append(Violation("field", field.field, field.description))
    return _CLASSES.get(status.code, UnknownError)(
        status.message,
        reason=info.reason,
        domain=info.domain,
        metadata=info.metadata,
        violations=violations,
        retry_after=retry_after,
        operation=operation,
    )


def error_from_rpc(error: grpc.RpcError) -> OvpressError:
    """The exception for a failed call of gRPC, of the blocking or the asyncio kind."""
    # RpcError itself promises nothing; the objects raised have these methods.
    call: Any = error
    details = None
    for key, value in call.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            details = value
    if details is not None:
        try:
            return error_from_status(pb.Status.FromString(details))
        except Exception:  # a proxy may send anything; the plain status is still there
            pass
    code: int = call.code().value[0]
    return error_from_status(pb.Status(code=code, message=call.details() or ""))
