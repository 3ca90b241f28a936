"""Certificates and JWTs for the tests, made with the openssl command."""

from __future__ import annotations

import base64
import json
import pathlib
import subprocess
import time


def openssl(*arguments, stdin: bytes = b"") -> bytes:
    done = subprocess.run(["openssl", *map(str, arguments)], input=stdin, capture_output=True)
    if done.returncode != 0:
        raise RuntimeError(f"openssl {arguments}: {done.stderr.decode()}")
    return done.stdout


class Authority:
    """A CA in a folder of its own."""

    def __init__(self, folder: pathlib.Path, name: str):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.certificate, self.key = folder / "ca.pem", folder / "ca.key"
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", 30, "-subj", f"/CN={name}", "-keyout", self.key, "-out", self.certificate)

    def issue(self, name: str, names: str = "", days: int = 30) -> tuple[pathlib.Path, pathlib.Path]:
        """The certificate and key of CN=`name`; `names` as in subjectAltName."""
        stem = self.folder / f"{name.replace('/', '_')}-{time.monotonic_ns()}"
        certificate, key, request, extensions = (stem.with_suffix(s) for s in (".pem", ".key", ".csr", ".ext"))
        openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}", "-keyout", key, "-out", request)
        extensions.write_text(f"subjectAltName={names}\n" if names else "basicConstraints=CA:FALSE\n")
        openssl("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.key, "-CAcreateserial", "-days", days, "-extfile", extensions, "-out", certificate)
        return certificate, key

    def server(self, days: int = 30) -> tuple[pathlib.Path, pathlib.Path]:
        return self.issue("ovpress", "DNS:localhost,IP:127.0.0.1", days)


def serial(certificate: pathlib.Path) -> str:
    return openssl("x509", "-in", certificate, "-noout", "-serial").decode().strip()


def served_serial(port: str, ca: pathlib.Path) -> str:
    """Of the certificate that a new connection gets now."""
    shown = openssl("s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", ca, "-alpn", "h2")
    return openssl("x509", "-noout", "-serial", stdin=shown).decode().strip()


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def raw_of_der(der: bytes) -> bytes:
    """R || S of an ECDSA signature over P-256."""
    assert der[0] == 0x30
    at, parts = 2, []
    for _ in range(2):
        assert der[at] == 2
        size = der[at + 1]
        parts.append(der[at + 2 : at + 2 + size].lstrip(b"\0").rjust(32, b"\0"))
        at += 2 + size
    return b"".join(parts)


class Issuer:
    """Signs JWTs; `key` is "rsa" or "ec"."""

    def __init__(self, folder: pathlib.Path, key: str, kid: str):
        folder.mkdir(parents=True, exist_ok=True)
        self.kind, self.kid, self.path = key, kid, folder / f"{kid}.key"
        options = ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"] if key == "rsa" else ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
        openssl("genpkey", *options, "-out", self.path)

    @property
    def algorithm(self) -> str:
        return "RS256" if self.kind == "rsa" else "ES256"

    def jwk(self) -> dict:
        common = {"kid": self.kid, "use": "sig"}
        if self.kind == "rsa":
            modulus = openssl("rsa", "-in", self.path, "-noout", "-modulus").decode().strip().split("=")[1]
            return {**common, "kty": "RSA", "n": b64(bytes.fromhex(modulus)), "e": "AQAB"}
        point = openssl("pkey", "-in", self.path, "-pubout", "-outform", "DER")[-64:]
        return {**common, "kty": "EC", "crv": "P-256", "x": b64(point[:32]), "y": b64(point[32:])}

    def sign(self, text: bytes) -> bytes:
        signature = openssl("dgst", "-sha256", "-sign", self.path, stdin=text)
        return signature if self.kind == "rsa" else raw_of_der(signature)

    def jwt(self, header: dict | None = None, **claims) -> str:
        header = {"alg": self.algorithm, "kid": self.kid, "typ": "JWT", **(header or {})}
        claims = {"iss": "https://id.example", "aud": "ovpress", "exp": int(time.time()) + 600, "scope": "submit read", **claims}
        text = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(claims).encode())}"
        return f"{text}.{b64(self.sign(text.encode()))}"
