"""How to reach the server: address, TLS, token, gRPC's settings."""

from __future__ import annotations

import ipaddress
import pathlib
import urllib.parse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, List, Optional, Tuple, Union

import grpc

if TYPE_CHECKING:
    import os

    Path = Union[str, os.PathLike[str]]

__all__ = ["Settings", "host_of", "is_loopback"]


def host_of(server: str) -> str:
    """The host of "host:port", "[::1]:port" or "dns:///host:port"; empty for a
    socket file."""
    scheme, colon, rest = server.partition(":")
    if colon and scheme in ("unix", "unix-abstract"):
        return ""
    if colon and scheme in ("dns", "ipv4", "ipv6", "passthrough"):
        server = rest.rpartition("/")[2] if rest.startswith("/") else rest
    return (urllib.parse.urlsplit(f"//{server}").hostname or "").strip("[]")


def is_loopback(server: str) -> bool:
    host = host_of(server)
    if not host:  # a socket file never leaves the machine
        return server.startswith("unix")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Settings:
    """The arguments of Client and AsyncClient."""

    server: str
    tls: bool
    tls_ca: "Optional[Path]"
    tls_cert: "Optional[Path]"
    tls_key: "Optional[Path]"
    tls_server_name: Optional[str]
    token: Optional[str]
    token_file: "Optional[Path]"
    allow_insecure_token: bool
    call_timeout: float
    idle_timeout: float
    retry_timeout: float

    def __post_init__(self) -> None:
        if not self.server or "/" in self.server.partition("://")[0].partition(":")[0]:
            raise ValueError(f"server must be HOST:PORT, not {self.server!r}")
        if self.server.startswith(("http:", "https:", "grpc:", "grpcs:")):
            raise ValueError(f"server must be HOST:PORT without a scheme, not {self.server!r}; for TLS give tls=True")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together: give both or neither")
        if self.token is not None and self.token_file is not None:
            raise ValueError("give token or token_file, not both")
        for name in ("call_timeout", "idle_timeout"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be more than 0 seconds, not {getattr(self, name)}")
        if self.retry_timeout < 0:
            raise ValueError(f"retry_timeout must be at least 0 seconds, not {self.retry_timeout}")
        if self._has_token and not (self._secure or self.allow_insecure_token or is_loopback(self.server)):
            raise ValueError(
                f"a token for {self.server} would travel unencrypted; give tls=True or tls_ca, "
                "or allow_insecure_token=True in a network that you trust"
            )
        self.metadata()  # an empty or unreadable token shows now, not in the first call

    @property
    def _secure(self) -> bool:
        return self.tls or self.tls_ca is not None or self.tls_cert is not None

    @property
    def _has_token(self) -> bool:
        return self.token is not None or self.token_file is not None

    def metadata(self) -> Tuple[Tuple[str, str], ...]:
        """What goes with each call. The file is read each time: tokens rotate."""
        if not self._has_token:
            return ()
        token = self.token if self.token_file is None else pathlib.Path(self.token_file).read_text()
        token = (token or "").strip()
        if not token or not token.isascii() or not token.isprintable():
            where = f"token_file {self.token_file}" if self.token_file is not None else "token"
            raise ValueError(f"{where} must hold one line of printable ASCII")
        return (("authorization", f"Bearer {token}"),)

    def _credentials(self) -> grpc.ChannelCredentials:
        def read(path: "Optional[Path]") -> Optional[bytes]:
            return None if path is None else pathlib.Path(path).read_bytes()

        return grpc.ssl_channel_credentials(read(self.tls_ca), read(self.tls_key), read(self.tls_cert))

    def _options(self) -> List[Tuple[str, Any]]:
        options: List[Tuple[str, Any]] = [
            # The pair of the server's limits: no GOAWAY for pings.
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.http2.max_pings_without_data", 0),
            # gRPC's own retries give up on streams beyond 256 KiB; ours resume.
            ("grpc.enable_retries", 0),
            # min_reconnect_backoff_ms stays at its 20 s: it is no wait, but what one
            # attempt may take; 100 ms of it cut off every handshake over a slow link.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            # Closing one client must not depend on what others in the process do.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if is_loopback(self.server):
            # An http_proxy in the environment must see neither model nor token.
            options.append(("grpc.enable_http_proxy", 0))
        if self.tls_server_name:
            options.append(("grpc.ssl_target_name_override", self.tls_server_name))
        return options

    def open(self) -> grpc.Channel:
        if self._secure:
            return grpc.secure_channel(self.server, self._credentials(), options=self._options())
        return grpc.insecure_channel(self.server, options=self._options())

    def open_async(self) -> "grpc.aio.Channel":
        import grpc.aio

        if self._secure:
            return grpc.aio.secure_channel(self.server, self._credentials(), options=self._options())
        return grpc.aio.insecure_channel(self.server, options=self._options())
