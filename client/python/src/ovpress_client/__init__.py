"""Client of ovpress, the service that compresses the weights of OpenVINO models.

    import ovpress_client

    with ovpress_client.Client("localhost:8470") as client:
        result = client.compress("model.xml", "out/", mode="int4_sym", ratio=0.8)
        print(result.xml, result.bits_per_weight)
"""

from ._version import __version__
from .aio import AsyncClient
from .client import Client
from .errors import (
    AbortedError,
    AlreadyExistsError,
    CancelledError,
    Code,
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    OvpressError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
    UnknownError,
    Violation,
)
from .models import Blob, Capabilities, Estimate, Job, JobResult, ModeInfo, Progress, Result, WeightPlan
from .nncf_like import compress_weights
from .options import CompressionKeywords, IgnoredScope, JobKeywords

__all__ = [
    "AbortedError",
    "AlreadyExistsError",
    "AsyncClient",
    "Blob",
    "CancelledError",
    "Capabilities",
    "Client",
    "Code",
    "CompressionKeywords",
    "DataLossError",
    "DeadlineExceededError",
    "Estimate",
    "FailedPreconditionError",
    "IgnoredScope",
    "InternalError",
    "InvalidArgumentError",
    "Job",
    "JobKeywords",
    "JobResult",
    "ModeInfo",
    "NotFoundError",
    "OutOfRangeError",
    "OvpressError",
    "PermissionDeniedError",
    "Progress",
    "ResourceExhaustedError",
    "Result",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "UnknownError",
    "Violation",
    "WeightPlan",
    "compress_weights",
    "__version__",
]
