"""What the client does, once for the blocking and the asyncio kind."""

from __future__ import annotations

import logging
import pathlib
import random
import re
import time
import uuid
from typing import TYPE_CHECKING, Any, Awaitable, Callable, Dict, Iterator, List, Mapping, Optional, Tuple, Type, TypeVar

from . import _messages as pb
from ._channel import Settings
from ._files import (
    Hasher,
    Output,
    bin_path,
    check_distinct,
    chunks,
    input_paths,
    is_address,
    output_path,
    prepare_folder,
)
from ._transport import Transport
from .errors import (
    AbortedError,
    CancelledError,
    DataLossError,
    DeadlineExceededError,
    InternalError,
    NotFoundError,
    OutOfRangeError,
    OvpressError,
    ResourceExhaustedError,
    UnavailableError,
    UnknownError,
)
from .models import (
    Blob,
    Capabilities,
    Estimate,
    Job,
    Progress,
    Result,
    blob_to_proto,
    capabilities_from_proto,
    estimate_from_proto,
    job_from_proto,
)
from .options import check_keywords, options_to_proto, request_to_proto, settings_to_proto

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from ._files import Path

T = TypeVar("T")
Response = TypeVar("Response", bound="Message")

logger = logging.getLogger("ovpress_client")

_BYTES = "/google.bytestream.ByteStream/"
_OPERATIONS = "/google.longrunning.Operations/"
_COMPRESSION = "/ovpress.v1.WeightCompression/"
_HEALTH = "/grpc.health.v1.Health/"

_FIRST_BACKOFF = 0.1
_LONGEST_BACKOFF = 5.0
_CANCEL_TIMEOUT = 10.0
# Above it EstimateCompression takes the .xml as a blob only.
_INLINE_XML_BYTES_MAX = 3 << 20
# How gRPC names a connection that a dying server or a proxy cut, when it does
# not take the plain UNAVAILABLE.
_BROKEN_CONNECTION = re.compile(r"RST_STREAM|[Ss]tream removed|GOAWAY|[Ss]ocket closed|Connection reset")


def is_passing(error: OvpressError) -> bool:
    """Whether a later attempt may succeed: the server is away, drains, is full
    for the moment, or another writer (our own broken one) is still there."""
    if isinstance(error, ResourceExhaustedError):
        # Without a time to come back it is a size that will never fit.
        return error.retry_after is not None
    if isinstance(error, (UnknownError, InternalError)):
        return not error.domain and _BROKEN_CONNECTION.search(error.message) is not None
    return isinstance(error, (UnavailableError, AbortedError, DeadlineExceededError, CancelledError))


class _Attempts:
    """State of one retry loop, shown to its body."""

    def __init__(self) -> None:
        self.number = 0
        #: The body sets it when something moved: patience starts anew.
        self.progressed = False


class _Reporter:
    """Hands progress to the caller's function and remembers if it raised."""

    def __init__(self, function: Optional[Progress]) -> None:
        self._function = function
        self.raised = False

    def __call__(self, phase: str, done: int, total: int) -> None:
        if self._function is None:
            return
        try:
            self._function(phase, done, total)
        except BaseException:
            self.raised = True
            raise


def _operation_name(job: "str | Job") -> str:
    name = job if isinstance(job, str) else job.name
    return name if name.startswith("operations/") else f"operations/{name}"


class Core:
    def __init__(self, settings: Settings, transport: Transport) -> None:
        self._settings = settings
        self._transport = transport

    # --- calls that are tried again ---

    async def _retry(self, what: str, body: Callable[[_Attempts], Awaitable[T]], *, resumes: bool = False) -> T:
        """Runs `body` until it succeeds, fails for good, or nothing moved for
        retry_timeout. With `resumes`, a wrong offset is a reason to ask again
        where the server stands."""
        attempts = _Attempts()
        backoff = _FIRST_BACKOFF
        give_up = time.monotonic() + self._settings.retry_timeout
        while True:
            attempts.progressed = False
            try:
                return await body(attempts)
            except OvpressError as error:
                if not is_passing(error) and not (resumes and isinstance(error, OutOfRangeError)):
                    raise
                if attempts.progressed:
                    backoff = _FIRST_BACKOFF
                    give_up = time.monotonic() + self._settings.retry_timeout
                # Full jitter upwards: many clients of a restarted server do not
                # come back at one moment, and none earlier than it was told.
                delay = max(backoff, error.retry_after or 0.0) * random.uniform(1.0, 1.5)
                if time.monotonic() + delay > give_up:
                    raise
                logger.info("%s: %s; trying again in %.1f s", what, error.message, delay)
            await self._transport.sleep(delay)
            backoff = min(2 * backoff, _LONGEST_BACKOFF)
            attempts.number += 1

    async def _unary(self, method: str, request: Message, response: Type[Response]) -> Response:
        async def call(_: _Attempts) -> Response:
            return await self._transport.unary(method, request, response, self._settings.call_timeout)

        return await self._retry(method.rpartition("/")[2], call)

    # --- blobs ---

    async def _find_missing(self, blobs: List[Blob]) -> List[Tuple[str, int]]:
        response = await self._unary(
            _COMPRESSION + "FindMissingBlobs",
            pb.FindMissingBlobsRequest(blobs=[blob_to_proto(blob) for blob in blobs]),
            pb.FindMissingBlobsResponse,
        )
        return [(blob.sha256, blob.size_bytes) for blob in response.missing_blobs]

    async def _committed(self, name: str) -> int:
        try:
            answer = await self._transport.unary(
                _BYTES + "QueryWriteStatus",
                pb.QueryWriteStatusRequest(resource_name=name),
                pb.QueryWriteStatusResponse,
                self._settings.call_timeout,
            )
        except NotFoundError:
            return 0
        return answer.committed_size

    async def _send(
        self, path: Optional[pathlib.Path], blob: Blob, upload_id: Optional[str], at_byte: Callable[[int], None]
    ) -> None:
        """Uploads one blob. With an upload_id it goes on with what an earlier
        process of this id sent."""
        name = f"uploads/{upload_id or uuid.uuid4()}/{blob.name}"
        best = 0

        async def attempt(attempts: _Attempts) -> None:
            nonlocal best
            start = 0
            if attempts.number > 0 or upload_id is not None:
                start = await self._committed(name)
                if start > best:
                    attempts.progressed = True
                    best = start

            def requests() -> Iterator[pb.WriteRequest]:
                for at, data in chunks(path, start, blob.size_bytes):
                    yield pb.WriteRequest(
                        resource_name=name if at == start else "",
                        write_offset=at,
                        data=data,
                        finish_write=at + len(data) == blob.size_bytes,
                    )

            def on_sent(request: pb.WriteRequest) -> None:
                at_byte(request.write_offset + len(request.data))

            answer = await self._transport.client_stream(_BYTES + "Write", requests(), pb.WriteResponse, on_sent)
            if answer.committed_size != blob.size_bytes:
                raise UnavailableError(f"the server took {answer.committed_size} of {blob.size_bytes} bytes")

        await self._retry("upload", attempt, resumes=True)

    async def upload(
        self,
        files: List[Optional[pathlib.Path]],
        report: Callable[[str, int, int], None],
        request_id: str = "",
        options: Optional[pb.CompressionOptions] = None,
    ) -> List[Blob]:
        """Hashes the files and sends those that the server lacks. With options,
        which the first file (the .xml) must allow, they are checked before the
        second one is sent."""
        total = sum(path.stat().st_size for path in files if path is not None)
        blobs: List[Blob] = []
        for path in files:
            hasher = await self._transport.work(Hasher, path)
            try:
                while await self._transport.work(hasher.step):
                    report("hashing", sum(blob.size_bytes for blob in blobs) + hasher.size, total)
            finally:
                hasher.close()
            blobs.append(hasher.blob())
        missing = await self._find_missing(blobs)
        total = sum(blob.size_bytes for blob in blobs)
        before = 0
        for index, (path, blob) in enumerate(zip(files, blobs)):
            if (blob.sha256, blob.size_bytes) in missing and blob not in blobs[:index]:
                if index > 0 and options is not None:
                    # A wrong option shows here rather than after an hour of upload.
                    await self._estimate(
                        pb.EstimateCompressionRequest(
                            xml_blob=blob_to_proto(blobs[0]), options=options, summary_only=True
                        )
                    )
                # Another id per content, for one upload is one blob.
                upload_id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{request_id}/{blob.name}")) if request_id else None
                base = before
                await self._send(path, blob, upload_id, lambda end: report("uploading", base + end, total))
            else:
                report("uploading", before + blob.size_bytes, total)
            before += blob.size_bytes
        return blobs

    async def fetch(self, blob: Blob, out: Output, at_byte: Callable[[int], None]) -> None:
        """Downloads one blob; goes on after breaks, checks the digest at the end."""

        async def attempt(attempts: _Attempts) -> None:
            async def on_message(message: pb.ReadResponse) -> None:
                if out.size + len(message.data) > blob.size_bytes:
                    raise DataLossError(f"the server sent more than the {blob.size_bytes} bytes of {blob.name}")
                if message.data:
                    attempts.progressed = True
                    await self._transport.work(out.append, message.data)
                    at_byte(out.size)

            request = pb.ReadRequest(resource_name=blob.name, read_offset=out.size)
            await self._transport.server_stream(_BYTES + "Read", request, pb.ReadResponse, on_message)
            if out.size != blob.size_bytes:
                raise UnavailableError(f"the download ended at {out.size} of {blob.size_bytes} bytes")

        await self._retry("download", attempt)
        out.check(blob)

    # --- jobs ---

    async def _start(
        self,
        model: Path,
        options: Mapping[str, Any],
        report: Callable[[str, int, int], None],
        request_id: str,
        sent: Optional[List[pb.CompressModelRequest]] = None,
    ) -> Job:
        """Uploads and submits. `sent` gets the request before the server can."""
        request = request_to_proto(options)
        if is_address(model):
            weights = options.get("weights")
            request.model_address.CopyFrom(pb.ModelAddress(xml=str(model), bin=str(weights) if weights else ""))
        else:
            xml, weights = input_paths(model, options.get("weights"))
            blobs = await self.upload([xml, weights], report, request.request_id, request.options)
            request.model.CopyFrom(pb.ModelBlobs(xml=blob_to_proto(blobs[0]), bin=blob_to_proto(blobs[1])))
        request.request_id = request_id  # with an id a repeated call is the same job
        if sent is not None:
            sent.append(request)
        return job_from_proto(await self._unary(_COMPRESSION + "CompressModel", request, pb.Operation))

    async def submit(self, model: Path, options: Mapping[str, Any], progress: Optional[Progress]) -> Job:
        check_keywords(options, job=True)
        request_id = options.get("request_id") or str(uuid.uuid4())
        return await self._start(model, options, _Reporter(progress), request_id)

    async def status(self, job: "str | Job") -> Job:
        request = pb.GetOperationRequest(name=_operation_name(job))
        return job_from_proto(await self._unary(_OPERATIONS + "GetOperation", request, pb.Operation))

    async def list(self, filter: str, limit: Optional[int]) -> List[Job]:
        jobs: List[Job] = []
        request = pb.ListOperationsRequest(filter=filter, page_size=min(limit or 1000, 1000))
        while True:
            page = await self._unary(_OPERATIONS + "ListOperations", request, pb.ListOperationsResponse)
            jobs += [job_from_proto(operation) for operation in page.operations]
            if not page.next_page_token or (limit is not None and len(jobs) >= limit):
                return jobs if limit is None else jobs[:limit]
            request.page_token = page.next_page_token

    async def cancel(self, job: "str | Job") -> None:
        request = pb.CancelOperationRequest(name=_operation_name(job))
        await self._unary(_OPERATIONS + "CancelOperation", request, pb.Empty)

    async def delete(self, job: "str | Job") -> None:
        request = pb.DeleteOperationRequest(name=_operation_name(job))
        await self._unary(_OPERATIONS + "DeleteOperation", request, pb.Empty)

    async def _cancel_for_good(self, name: str, sent: List[pb.CompressModelRequest]) -> None:
        """One try, for a caller that wants to leave. Without a name the
        interrupt hit CompressModel, which the server took, takes in this
        moment, or never saw; a list of its jobs may come too early to tell. The
        request once more does: the same request_id is the same job."""
        try:
            if not name:
                operation = await self._transport.unary(
                    _COMPRESSION + "CompressModel", sent[0], pb.Operation, _CANCEL_TIMEOUT
                )
                name = operation.name
            request = pb.CancelOperationRequest(name=name)
            await self._transport.unary(_OPERATIONS + "CancelOperation", request, pb.Empty, _CANCEL_TIMEOUT)
            logger.info("%s was cancelled", name)
        except OvpressError as error:
            logger.warning("%s may go on: %s", name or f"the job of request_id {sent[0].request_id}", error.message)

    async def _watch(self, name: str, report: Callable[[str, int, int], None]) -> Job:
        last: List[Job] = []

        async def attempt(attempts: _Attempts) -> Job:
            async def on_message(operation: pb.Operation) -> None:
                attempts.progressed = True
                job = job_from_proto(operation)
                last[:] = [job]
                if job.state == "QUEUED":
                    report("queued", job.queue_position, 0)
                elif job.state == "RUNNING" and job.phase:
                    report(job.phase, job.bytes_done, job.bytes_total)

            request = pb.WatchOperationRequest(name=name)
            try:
                await self._transport.server_stream(_COMPRESSION + "WatchOperation", request, pb.Operation, on_message)
            except OvpressError:
                if not (last and last[0].done):
                    raise
            if not (last and last[0].done):
                raise UnavailableError("the watch ended before the job", operation=name)
            return last[0]

        return await self._retry("watch", attempt)

    async def watch(self, job: "str | Job", progress: Optional[Progress]) -> Job:
        return await self._watch(_operation_name(job), _Reporter(progress))

    # --- results ---

    async def _fetch_result(
        self, job: Job, xml: pathlib.Path, report_file: Optional[Path], report: Callable[[str, int, int], None]
    ) -> Result:
        """All files, whole or not at all."""
        outcome = job.result()
        # The .xml last: whoever sees it finds its .bin.
        parts = [(outcome.bin, bin_path(xml)), (outcome.xml, xml)]
        report_path = None if report_file is None else pathlib.Path(report_file)
        if report_path is not None:
            parts.insert(0, (outcome.report, report_path))
        total = sum(blob.size_bytes for blob, _ in parts)
        outputs: List[Output] = []
        before = 0
        try:
            for blob, path in parts:
                out = await self._transport.work(Output, path)
                outputs.append(out)
                base = before
                await self.fetch(blob, out, lambda size: report("downloading", base + size, total))
                before += blob.size_bytes
            for out in outputs:
                await self._transport.work(out.sync)
            for out in outputs:
                await self._transport.work(out.publish)
        finally:
            for out in outputs:
                out.discard()
        return Result(xml=xml, bin=bin_path(xml), report=report_path, job=job)

    async def download(
        self, job: "str | Job", output: Path, report_file: Optional[Path], progress: Optional[Progress]
    ) -> Result:
        if not isinstance(job, Job) or not job.done:
            job = await self.status(job)
        xml = output_path(output, "model.xml")
        return await self._fetch_result(job, xml, report_file, _Reporter(progress))

    async def compress(
        self,
        model: Path,
        output: Path,
        options: Mapping[str, Any],
        report_file: Optional[Path],
        progress: Optional[Progress],
        detach: bool,
    ) -> Result:
        check_keywords(options, job=True)
        if is_address(output):
            raise ValueError("compress() writes local files; give submit() the output_address instead")
        if is_address(model):
            xml = output_path(output, str(model).rpartition("/")[2])
        else:
            inputs = input_paths(model, options.get("weights"))
            xml = output_path(output, inputs[0].name)
            check_distinct(inputs, xml)
        await self._transport.work(prepare_folder, xml)
        report = _Reporter(progress)
        request_id = options.get("request_id") or str(uuid.uuid4())
        name, running = "", False
        sent: List[pb.CompressModelRequest] = []
        try:
            job = await self._start(model, options, report, request_id, sent)
            name, running = job.name, not job.done
            if running:
                job = await self._watch(name, report)
                running = False
            return await self._fetch_result(job, xml, report_file, report)
        except OvpressError as error:
            error.operation = error.operation or name
            raise
        except BaseException as error:
            # The caller stops: an interrupt, a cancelled task, or a progress
            # function that raised. A local failure such as a full disk leaves
            # the job, and its result, to be fetched later.
            stopped = report.raised or not isinstance(error, Exception)
            if stopped and not detach and (running or (sent and not name)):
                await self._cancel_for_good(name, sent)
            raise

    # --- the server ---

    async def health(self) -> str:
        request = pb.HealthCheckRequest(service="ovpress.v1.WeightCompression")
        answer = await self._transport.unary(
            _HEALTH + "Check", request, pb.HealthCheckResponse, min(self._settings.call_timeout, 5.0)
        )
        return {1: "SERVING", 2: "NOT_SERVING"}.get(answer.status, "UNKNOWN")

    async def capabilities(self) -> Capabilities:
        return capabilities_from_proto(
            await self._unary(_COMPRESSION + "GetCapabilities", pb.GetCapabilitiesRequest(), pb.GetCapabilitiesResponse)
        )

    async def estimate(self, model: Path, options: Mapping[str, Any], memory_budget: int, summary_only: bool) -> Estimate:
        check_keywords(options, job=False)
        request = pb.EstimateCompressionRequest(
            options=options_to_proto(options),
            settings=settings_to_proto({"memory_budget": memory_budget}),
            summary_only=summary_only,
        )
        xml, _ = input_paths(model, None)
        if xml.stat().st_size <= _INLINE_XML_BYTES_MAX:
            request.xml = await self._transport.work(xml.read_bytes)
        else:
            (blob,) = await self.upload([xml], lambda *_: None)
            request.xml_blob.CopyFrom(blob_to_proto(blob))
        return await self._estimate(request)

    async def _estimate(self, request: pb.EstimateCompressionRequest) -> Estimate:
        return estimate_from_proto(
            await self._unary(_COMPRESSION + "EstimateCompression", request, pb.EstimateCompressionResponse)
        )
