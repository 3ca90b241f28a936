"""Calls, waits and file work, in two kinds: blocking and asyncio.

The logic of the client (_core.py) is written once, as coroutines over
`Transport`. With the blocking kind no await ever suspends, so `run_blocking`
drives such a coroutine to its end in one step, on the caller's thread: no
event loop, no second thread that an interrupt would not reach.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import queue
import threading
import time
from typing import TYPE_CHECKING, Any, Awaitable, Callable, Coroutine, Iterator, Optional, Type, TypeVar

import grpc

from . import _messages as pb
from ._channel import Settings
from .errors import OvpressError, UnavailableError, error_from_rpc

if TYPE_CHECKING:
    from google.protobuf.message import Message

T = TypeVar("T")
Request = TypeVar("Request", bound="Message")
Response = TypeVar("Response", bound="Message")


def run_blocking(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine over BlockingTransport."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise RuntimeError("a blocking call tried to suspend")


class Transport(abc.ABC):
    """Errors of calls come out as OvpressError."""

    @abc.abstractmethod
    async def unary(self, method: str, request: Message, response: Type[Response], timeout: float) -> Response: ...

    @abc.abstractmethod
    async def client_stream(
        self, method: str, requests: Iterator[Request], response: Type[Response], on_sent: Callable[[Request], None]
    ) -> Response:
        """Sends what `requests` yields until the server answers, which may be
        early. UnavailableError if nothing moves for idle_timeout."""

    @abc.abstractmethod
    async def server_stream(
        self, method: str, request: Message, response: Type[Response], on_message: Callable[[Response], Awaitable[None]]
    ) -> None:
        """UnavailableError if nothing comes for idle_timeout."""

    @abc.abstractmethod
    async def sleep(self, seconds: float) -> None: ...

    @abc.abstractmethod
    async def work(self, function: Callable[..., T], *arguments: Any) -> T:
        """Runs what touches files or hashes; not on the event loop's thread."""


def _idle(seconds: float) -> OvpressError:
    return UnavailableError(f"no byte moved for {seconds:g} s")


class BlockingTransport(Transport):
    """Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._channel = settings.open()

    def close(self) -> None:
        self._channel.close()

    async def unary(self, method: str, request: Message, response: Type[Response], timeout: float) -> Response:
        call = self._channel.unary_unary(
            method, request_serializer=_serialize, response_deserializer=response.FromString
        )
        try:
            answer: Response = call(request, timeout=timeout, metadata=self._settings.metadata())
        except grpc.RpcError as error:
            raise error_from_rpc(error) from None
        return answer

    async def client_stream(
        self, method: str, requests: Iterator[Request], response: Type[Response], on_sent: Callable[[Request], None]
    ) -> Response:
        # gRPC takes the messages on a thread of its own. Here they are read and
        # reported on the caller's: its files, its exceptions, its Ctrl-C.
        pending: queue.Queue[Optional[Request]] = queue.Queue(maxsize=2)
        call: Any = self._channel.stream_unary(
            method, request_serializer=_serialize, response_deserializer=response.FromString
        ).future(iter(pending.get, None), metadata=self._settings.metadata())
        idle = self._settings.idle_timeout
        try:
            for request in _and_none(requests):
                last = time.monotonic()
                while not call.done():  # an answer may come before all is sent
                    try:
                        pending.put(request, timeout=0.2)
                        break
                    except queue.Full:
                        if time.monotonic() - last > idle:
                            raise _idle(idle) from None
                if call.done():
                    break
                if request is not None:
                    on_sent(request)
            answer: Response = call.result(timeout=idle)
            return answer
        except grpc.FutureTimeoutError:
            raise _idle(idle) from None
        except grpc.RpcError as error:
            raise error_from_rpc(error) from None
        except grpc.FutureCancelledError:
            raise UnavailableError("the channel was closed") from None
        finally:
            call.cancel()
            # Let gRPC's thread go.
            with contextlib.suppress(queue.Empty):
                while True:
                    pending.get_nowait()
            pending.put_nowait(None)

    async def server_stream(
        self, method: str, request: Message, response: Type[Response], on_message: Callable[[Response], Awaitable[None]]
    ) -> None:
        call: Any = self._channel.unary_stream(
            method, request_serializer=_serialize, response_deserializer=response.FromString
        )(request, metadata=self._settings.metadata())
        with _Watchdog(call, self._settings.idle_timeout) as watchdog:
            try:
                for message in call:
                    await on_message(message)
                    watchdog.touch()
            except grpc.RpcError as error:
                if watchdog.expired:
                    raise _idle(self._settings.idle_timeout) from None
                raise error_from_rpc(error) from None
            finally:
                call.cancel()

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    async def work(self, function: Callable[..., T], *arguments: Any) -> T:
        return function(*arguments)


class _Watchdog:
    """Cancels a stream when nothing comes for too long."""

    def __init__(self, call: Any, idle_timeout: float) -> None:
        self._call = call
        self._limit = idle_timeout
        self._last = time.monotonic()
        self._ended = threading.Event()
        self.expired = False
        self._thread = threading.Thread(target=self._watch, name="ovpress-watchdog", daemon=True)

    def touch(self) -> None:
        self._last = time.monotonic()

    def _watch(self) -> None:
        while not self._ended.wait(max(0.05, self._last + self._limit - time.monotonic())):
            if time.monotonic() - self._last >= self._limit:
                self.expired = True
                self._call.cancel()
                return

    def __enter__(self) -> _Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()


class AsyncTransport(Transport):
    """Belongs to the event loop on which it was made."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # Any: the stubs of grpc.aio that there are miss defaults.
        self._channel: Any = settings.open_async()
        self._uploads: Optional[grpc.Channel] = None

    async def close(self) -> None:
        await self._channel.close()
        if self._uploads is not None:
            self._uploads.close()

    async def unary(self, method: str, request: Message, response: Type[Response], timeout: float) -> Response:
        call = self._channel.unary_unary(
            method, request_serializer=_serialize, response_deserializer=response.FromString
        )
        try:
            answer: Response = await call(request, timeout=timeout, metadata=self._settings.metadata())
        except grpc.RpcError as error:
            raise error_from_rpc(error) from None
        return answer

    async def client_stream(
        self, method: str, requests: Iterator[Request], response: Type[Response], on_sent: Callable[[Request], None]
    ) -> Response:
        # By a blocking channel, whose calls are futures with a thread of gRPC's
        # own: when a server ends a call early, grpc.aio may put "Internal error
        # from Core" over the status that came (grpc/grpc issue 36066), and an
        # upload that was refused, or taken at once, could not be told from a
        # broken one.
        if self._uploads is None:
            self._uploads = self._settings.open()
        loop = asyncio.get_running_loop()
        moved = asyncio.Event()
        room = 2  # messages that may wait for gRPC
        pending: queue.SimpleQueue[Optional[Request]] = queue.SimpleQueue()

        def tell(function: Callable[[], None]) -> None:  # from gRPC's threads
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(function)

        def more_room() -> None:
            nonlocal room
            room += 1
            moved.set()

        def take() -> Optional[Request]:
            request = pending.get()
            tell(more_room)
            return request

        idle = self._settings.idle_timeout
        call: Any = self._uploads.stream_unary(
            method, request_serializer=_serialize, response_deserializer=response.FromString
        ).future(iter(take, None), metadata=self._settings.metadata())
        call.add_done_callback(lambda _: tell(moved.set))
        try:
            while not call.done():
                request = await self.work(next, requests, None)
                while room == 0 and not call.done():
                    moved.clear()
                    await asyncio.wait_for(moved.wait(), idle)
                pending.put(request)
                room -= 1
                if request is None:
                    break
                on_sent(request)
            while not call.done():
                moved.clear()
                if not call.done():
                    await asyncio.wait_for(moved.wait(), idle)
            answer: Response = call.result(timeout=0)
            return answer
        except asyncio.TimeoutError:
            raise _idle(idle) from None
        except grpc.RpcError as error:
            raise error_from_rpc(error) from None
        except grpc.FutureCancelledError:
            raise UnavailableError("the channel was closed") from None
        finally:
            call.cancel()
            pending.put(None)  # let gRPC's thread go

    async def server_stream(
        self, method: str, request: Message, response: Type[Response], on_message: Callable[[Response], Awaitable[None]]
    ) -> None:
        call = self._channel.unary_stream(
            method, request_serializer=_serialize, response_deserializer=response.FromString
        )(request, metadata=self._settings.metadata())
        idle = self._settings.idle_timeout
        try:
            while True:
                message = await asyncio.wait_for(call.read(), idle)
                if not isinstance(message, response):  # gRPC's mark of the end
                    return
                await on_message(message)
        except asyncio.TimeoutError:
            raise _idle(idle) from None
        except grpc.RpcError as error:
            raise error_from_rpc(error) from None
        finally:
            call.cancel()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def work(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)


def _and_none(items: Iterator[T]) -> Iterator[Optional[T]]:
    yield from items
    yield None


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


__all__ = ["AsyncTransport", "BlockingTransport", "Transport", "run_blocking"]
