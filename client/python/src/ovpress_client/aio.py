"""The asyncio client."""

from __future__ import annotations

from typing import TYPE_CHECKING, List, Optional, Union

from ._channel import Settings
from ._core import Core
from ._transport import AsyncTransport
from .models import Capabilities, Estimate, Job, Progress, Result
from .options import CompressionKeywords, JobKeywords

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._files import Path


class AsyncClient:
    """`Client` for asyncio: the same arguments and methods, awaited. Make and
    use it on one running event loop; `async with`, or await `close()`.

    File reads, writes and digests run in the loop's default executor; progress
    is called on the loop. A cancelled task cancels its job, as Ctrl-C does.
    """

    def __init__(
        self,
        server: str,
        *,
        tls: bool = False,
        tls_ca: Optional[Path] = None,
        tls_cert: Optional[Path] = None,
        tls_key: Optional[Path] = None,
        tls_server_name: Optional[str] = None,
        token: Optional[str] = None,
        token_file: Optional[Path] = None,
        allow_insecure_token: bool = False,
        call_timeout: float = 60.0,
        idle_timeout: float = 120.0,
        retry_timeout: float = 120.0,
    ) -> None:
        settings = Settings(
            server=server,
            tls=tls,
            tls_ca=tls_ca,
            tls_cert=tls_cert,
            tls_key=tls_key,
            tls_server_name=tls_server_name,
            token=token,
            token_file=token_file,
            allow_insecure_token=allow_insecure_token,
            call_timeout=call_timeout,
            idle_timeout=idle_timeout,
            retry_timeout=retry_timeout,
        )
        self._transport = AsyncTransport(settings)
        self._core = Core(settings, self._transport)

    async def close(self) -> None:
        await self._transport.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def compress(
        self,
        model: Path,
        output: Path,
        *,
        report: Optional[Path] = None,
        progress: Optional[Progress] = None,
        detach: bool = False,
        **options: Unpack[JobKeywords],
    ) -> Result:
        """Compresses `model` (the .xml of an OpenVINO IR) and writes `output`:
        a file name that ends in .xml, or a folder (existing, or ending in "/")
        that gets a file of the input's name. The .bin goes beside it.

        The options are the arguments of nncf.compress_weights; see JobKeywords
        for all. `report` is a file for the JSON report. An interrupt (Ctrl-C,
        a cancelled task, an exception from `progress`) cancels the job unless
        `detach` is true; a broken connection or a restart of the server does not.
        """
        return await self._core.compress(model, output, options, report, progress, detach)

    async def submit(
        self, model: Path, *, progress: Optional[Progress] = None, **options: Unpack[JobKeywords]
    ) -> Job:
        """Uploads the model and starts a job; returns once the server has it.
        An address "s3://bucket/key.xml" is read by the server itself."""
        return await self._core.submit(model, options, progress)

    async def status(self, job: Union[str, Job]) -> Job:
        """The latest state of a job: "operations/ID", the ID, or an earlier state."""
        return await self._core.status(job)

    async def watch(self, job: Union[str, Job], *, progress: Optional[Progress] = None) -> Job:
        """Follows a job to its end; attaches again after broken connections.
        A failed job is returned, not raised: `Job.result()` raises."""
        return await self._core.watch(job, progress)

    async def download(
        self,
        job: Union[str, Job],
        output: Path,
        *,
        report: Optional[Path] = None,
        progress: Optional[Progress] = None,
    ) -> Result:
        """Writes the result of a finished job, digests checked. In a folder the
        file is called model.xml. FailedPreconditionError if the job is not
        done; its own error if it failed."""
        return await self._core.download(job, output, report, progress)

    async def list(self, *, filter: str = "", limit: Optional[int] = None) -> List[Job]:
        """Jobs, newest first; all of them unless `limit` is given. A filter is
        "state=RUNNING AND labels.team=search"."""
        return await self._core.list(filter, limit)

    async def cancel(self, job: Union[str, Job]) -> None:
        """Ends a job; no error if it has ended already."""
        await self._core.cancel(job)

    async def delete(self, job: Union[str, Job]) -> None:
        """Forgets a finished job and its result. FailedPreconditionError while
        it is queued or running."""
        await self._core.delete(job)

    async def health(self) -> str:
        """"SERVING", or "NOT_SERVING" while the server drains. One try:
        UnavailableError or DeadlineExceededError if it does not answer."""
        return await self._core.health()

    async def capabilities(self) -> Capabilities:
        """What the server can do and how much it takes."""
        return await self._core.capabilities()

    async def estimate(
        self,
        model: Path,
        *,
        memory_budget: int = 0,
        summary_only: bool = False,
        **options: Unpack[CompressionKeywords],
    ) -> Estimate:
        """The plan for each weight, and sizes, memory and disk of the job, from
        the .xml alone: no weight is sent."""
        return await self._core.estimate(model, options, memory_budget, summary_only)
