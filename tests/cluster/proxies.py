"""What may lie between a server and its stores: a door that can be shut on a
TCP connection, and an HTTP proxy that behaves as a busy object store does."""

from __future__ import annotations

import http.client
import http.server
import random
import socket
import ssl
import struct
import threading
import time


def reset(end: socket.socket):
    """RST instead of FIN: nothing that was sent is waited for."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Door:
    """TCP to a Unix socket. Shut, nothing passes and nothing is closed."""

    def __init__(self, target: str):
        self.target = target
        self.shut = threading.Event()
        self.cuts = 0
        self._ends: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            try:
                far.connect(self.target)
            except OSError:  # the other side is down
                near.close()
                continue
            with self._lock:
                self._ends |= {near, far}
            for a, b in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(a, b), daemon=True).start()

    def _pump(self, a: socket.socket, b: socket.socket):
        try:
            while data := a.recv(1 << 16):
                while self.shut.is_set():
                    time.sleep(0.02)
                b.sendall(data)
        except OSError:
            pass
        for end in (a, b):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            with self._lock:
                self._ends.discard(end)

    def cut(self):
        """All connections that are there end."""
        with self._lock:
            ends = list(self._ends)
        self.cuts += len(ends) // 2
        for end in ends:
            try:
                reset(end)
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self):
        self.shut.clear()
        self._listener.close()
        self.cut()


class BusyStore:
    """HTTP to an object store. `faults` are chances: "slow" answers 503
    SlowDown, "reset" cuts before the store hears of it, "lost" after it did what
    it was asked for, "half" in the middle of the answer, "stall" says nothing
    for two seconds and cuts. While `silent` is set nothing is answered."""

    def __init__(self, port: int, seed: int = 0, tls: ssl.SSLContext | None = None):
        self.faults: dict[str, float] = {}
        self.silent = threading.Event()
        self.made: dict[str, int] = {}
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Head and body in one segment, or Nagle's algorithm waits between them.
            wbufsize = -1

            def log_message(self, *_):
                pass

            def handle(self):
                try:
                    super().handle()
                except OSError:
                    pass

            def one(self):
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                fault = proxy._pick()
                while proxy.silent.is_set():
                    time.sleep(0.02)
                if fault == "stall":
                    time.sleep(2)
                if fault in ("reset", "stall"):
                    return self.cut()
                if fault == "slow":
                    text = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate</Message></Error>"
                    return self.answer(503, [("Content-Type", "application/xml")], text)
                store = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                try:
                    # The host is signed: it stays that of the proxy.
                    store.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                    for name, value in self.headers.items():
                        if name.lower() != "connection":
                            store.putheader(name, value)
                    store.endheaders(body)
                    got = store.getresponse()
                    text = got.read()
                except (OSError, http.client.HTTPException):
                    return self.cut()
                finally:
                    store.close()
                if fault == "lost":
                    return self.cut()
                headers = [(n, v) for n, v in got.getheaders() if n.lower() not in ("content-length", "transfer-encoding", "connection")]
                if self.command == "HEAD":
                    return self.answer(got.status, headers, b"", got.getheader("content-length") or "0")
                return self.answer(got.status, headers, text, half=fault == "half" and len(text) > 1)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = one

            def answer(self, status, headers, text, length=None, half=False):
                self.send_response_only(status)
                for name, value in [*headers, ("Content-Length", length or str(len(text)))]:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text[: len(text) // 2] if half else text)
                self.wfile.flush()
                if half:
                    time.sleep(0.05)  # or the reset overtakes it
                    self.cut()

            def cut(self):
                reset(self.connection)
                self.close_connection = True

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def shutdown_request(self, request):  # no FIN before the RST
                self.close_request(request)

            def handle_error(self, *_):
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self.endpoint = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def _pick(self) -> str:
        with self._lock:
            point = self._random.random()
            for name, chance in self.faults.items():
                point -= chance
                if point < 0:
                    self.made[name] = self.made.get(name, 0) + 1
                    return name
        return ""

    def close(self):
        self.silent.clear()
        self._server.shutdown()
        self._server.server_close()
