"""A stand-in for nncf.compress_weights in a script that has the model in memory."""

from __future__ import annotations

import os
import pathlib
import tempfile
from typing import TYPE_CHECKING, Any, Optional

from .client import Client

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .options import CompressionKeywords


def compress_weights(
    model: Any,
    *,
    client: Optional[Client] = None,
    server: Optional[str] = None,
    **options: Unpack[CompressionKeywords],
) -> Any:
    """Compresses an openvino.Model on a server; returns the compressed model.

    Takes nncf.compress_weights' arguments. The server is `client`, or `server`
    (HOST:PORT), or the environment's OVPRESS_SERVER with, if set,
    OVPRESS_TLS_CA and OVPRESS_TOKEN_FILE. Unlike NNCF it leaves `model` as it
    was. Needs the openvino package, which `ovpress_client` does not install.
    A model that is in files already is better given to `Client.compress`.
    """
    import openvino

    if client is None:
        server = server or os.environ.get("OVPRESS_SERVER")
        if not server:
            raise ValueError("no server: give client=, server= or set OVPRESS_SERVER")
        with Client(
            server,
            tls_ca=os.environ.get("OVPRESS_TLS_CA"),
            token_file=os.environ.get("OVPRESS_TOKEN_FILE"),
        ) as opened:
            return compress_weights(model, client=opened, **options)
    with tempfile.TemporaryDirectory(prefix="ovpress-") as folder:
        path = pathlib.Path(folder) / "model.xml"
        # As it is: save_model would otherwise turn f32 into f16 first.
        openvino.save_model(model, path, compress_to_fp16=False)
        result = client.compress(path, pathlib.Path(folder) / "compressed.xml", **options)
        core = openvino.Core()
        # Read, not mapped: the files go when this returns.
        core.set_property({"ENABLE_MMAP": False})
        return core.read_model(result.xml)
