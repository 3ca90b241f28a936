"""Files: names, digests, and outputs that appear whole or not at all."""

from __future__ import annotations

import hashlib
import io
import os
import pathlib
import secrets
from typing import IO, TYPE_CHECKING, Iterator, Optional, Tuple, Union

from .errors import DataLossError
from .models import Blob

if TYPE_CHECKING:
    Path = Union[str, os.PathLike[str]]

CHUNK_BYTES = 1 << 20


def bin_path(xml: pathlib.Path) -> pathlib.Path:
    return xml.with_suffix(".bin")


def is_address(model: Path) -> bool:
    """Whether it names an object that the server reads itself, not a file."""
    return isinstance(model, str) and model.startswith("s3://")


def input_paths(model: Path, weights: Optional[Path]) -> Tuple[pathlib.Path, Optional[pathlib.Path]]:
    """The .xml and the .bin; None for the latter if there is none, which a
    model without constants may do."""
    xml = pathlib.Path(model)
    if xml.suffix != ".xml":
        raise ValueError(f"{xml} must be the .xml of an OpenVINO IR model")
    if weights is not None:
        return xml, pathlib.Path(weights)
    found = bin_path(xml)
    return xml, found if found.exists() else None


def output_path(output: Path, name: str) -> pathlib.Path:
    """The .xml to write: `output` itself, or `name` in it if it is a folder."""
    path = pathlib.Path(output)
    if str(output).endswith(("/", os.sep)) or path.is_dir():
        return path / name
    if path.suffix != ".xml":
        raise ValueError(f"{output} must end in .xml, or in / for a folder")
    return path


def prepare_folder(xml: pathlib.Path) -> None:
    """Makes the output's folder and sees that files can be made in it; OSError
    now rather than after an hour of work."""
    xml.parent.mkdir(parents=True, exist_ok=True)
    probe = Output(xml)
    probe.discard()


def check_distinct(inputs: Tuple[Optional[pathlib.Path], ...], xml: pathlib.Path) -> None:
    """The input is never touched: ValueError if an output would replace it."""
    for given in inputs:
        for out in (xml, bin_path(xml)):
            if given is not None and out.exists() and given.exists() and os.path.samefile(given, out):
                raise ValueError(f"{out} is the input; the output needs another name")


class Hasher:
    """Finds the blob that is in a file, piece by piece; no file: no bytes."""

    # Larger than what is sent: with asyncio each piece is a trip to a thread.
    _PIECE_BYTES = 8 << 20

    def __init__(self, path: Optional[pathlib.Path]) -> None:
        self._file: IO[bytes] = io.BytesIO() if path is None else open(path, "rb")
        self._digest = hashlib.sha256()
        self.size = 0

    def step(self) -> bool:
        """False at the end."""
        data = self._file.read(self._PIECE_BYTES)
        self._digest.update(data)
        self.size += len(data)
        return bool(data)

    def close(self) -> None:
        self._file.close()

    def blob(self) -> Blob:
        return Blob(self._digest.hexdigest(), self.size)


def chunks(path: Optional[pathlib.Path], start: int, size: int) -> Iterator[Tuple[int, bytes]]:
    """(offset, data) from `start` to `size`; one empty piece if nothing is left."""
    if path is None or start >= size:
        yield start, b""
        return
    with open(path, "rb") as file:
        file.seek(start)
        at = start
        while at < size:
            data = file.read(min(CHUNK_BYTES, size - at))
            if not data:
                raise DataLossError(f"{path} became shorter while it was read: {at} of {size} bytes")
            yield at, data
            at += len(data)


class Output:
    """A file under a temporary name in its folder until `publish`."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        name = path.parent / f".{path.name}.{secrets.token_hex(6)}.part"
        # Not tempfile: its 0600 would stay, where the umask should decide.
        handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        self._temporary: Optional[pathlib.Path] = name
        self._file: IO[bytes] = os.fdopen(handle, "wb")
        self._digest = hashlib.sha256()
        self.size = 0

    def append(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    def check(self, blob: Blob) -> None:
        """DataLossError unless the bytes are those of the blob."""
        if self.size != blob.size_bytes or self._digest.hexdigest() != blob.sha256:
            raise DataLossError(f"the {self.size} bytes received for {self.path} are not those of {blob.name}")

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def publish(self) -> None:
        """REQUIRES: sync was called."""
        assert self._temporary is not None
        os.replace(self._temporary, self.path)
        self._temporary = None
        if os.name == "posix":
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def discard(self) -> None:
        """Removes what was not published. Safe to call at any time."""
        self._file.close()
        if self._temporary is not None:
            try:
                os.unlink(self._temporary)
            except FileNotFoundError:
                pass
            self._temporary = None
