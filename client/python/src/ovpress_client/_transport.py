"""Calls, waits and file work, in two kinds: blocking and asyncio.

The logic of the client (_core.py) is written once, as coroutines over
`Transport`. With the blocking kind no await ever suspends, so `run_blocking`
drives such a coroutine to its end in one step, on the caller's thread: no
event loop, no second thread that an interrupt would not reach.
"""

from __future__ import annotations

import abc
import asyncio
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
    async def client_stream(self, method: str, requests: Iterator[Message], response: Type[Response]) -> Response:
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

    async def client_stream(self, method: str, requests: Iterator[Message], response: Type[Response]) -> Response:
        failures = []
        last = time.monotonic()

        def guarded() -> Iterator[Message]:  # runs in a thread of gRPC
            nonlocal last
            try:
                for request in requests:
                    last = time.monotonic()
                    yield request
            except BaseException as error:
                # gRPC would turn it into a status; the caller gets it as it is.
                failures.append(error)
                raise

        call: Any = self._channel.stream_unary(
            method, request_serializer=_serialize, response_deserializer=response.FromString
        ).future(guarded(), metadata=self._settings.metadata())
        try:
            while True:
                try:
                    # In slices, to see an idle stream; an answer wakes it at once.
                    answer: Response = call.result(timeout=0.2)
                    return answer
                except grpc.FutureTimeoutError:
                    if time.monotonic() - last > self._settings.idle_timeout:
                        raise _idle(self._settings.idle_timeout) from None
        except grpc.RpcError as error:
            if failures:
                raise failures[0] from None
            raise error_from_rpc(error) from None
        except grpc.FutureCancelledError:
            raise UnavailableError("the channel was closed") from None
        finally:
            call.cancel()

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

    async def close(self) -> None:
        await self._channel.close()

    async def unary(self, method: str, request: Message, response: Type[Response], timeout: float) -> Response:
        call = self._channel.unary_unary(
            method, request_serializer=_serialize, response_deserializer=response.FromString
        )
        try:
            answer: Response = await call(request, timeout=timeout, metadata=self._settings.metadata())
        except grpc.RpcError as error:
            raise error_from_rpc(error) from None
        return answer

    async def client_stream(self, method: str, requests: Iterator[Message], response: Type[Response]) -> Response:
        call = self._channel.stream_unary(
            method, request_serializer=_serialize, response_deserializer=response.FromString
        )(metadata=self._settings.metadata())
        idle = self._settings.idle_timeout
        try:
            while True:
                request = await self.work(next, requests, None)
                if request is None or call.done():
                    break
                try:
                    await asyncio.wait_for(call.write(request), idle)
                except (asyncio.InvalidStateError, grpc.RpcError):
                    break  # the server answered before all was sent; the answer says why
            if not call.done():
                try:
                    await asyncio.wait_for(call.done_writing(), idle)
                except (asyncio.InvalidStateError, grpc.RpcError):
                    pass
            answer: Response = await asyncio.wait_for(_answer(call), idle)
            return answer
        except asyncio.TimeoutError:
            raise _idle(idle) from None
        except grpc.RpcError as error:
            raise error_from_rpc(error) from None
        finally:
            call.cancel()

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


async def _answer(call: Any) -> Any:
    return await call


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


__all__ = ["AsyncTransport", "BlockingTransport", "Transport", "run_blocking"]
