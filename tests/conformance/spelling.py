"""Models of the zoo, written as other programs or people might write them.

OpenVINO reads each as the same model, or refuses it; so must ovpress.
"""

from __future__ import annotations

import pathlib
import random
import shutil
import xml.etree.ElementTree as ET
from typing import Callable

SPELLINGS: dict[str, Callable[[ET.Element], None]] = {}
MODELS = ("mlp_large", "f16_weights", "transposed_b", "states", "if_bodies")


def spelling(function: Callable[[ET.Element], None]) -> Callable[[ET.Element], None]:
    SPELLINGS[function.__name__] = function
    return function


def _set_types(root: ET.Element, change: Callable[[str], str], *types: str) -> None:
    for layer in root.iter("layer"):
        if layer.get("type") in types:
            layer.set("type", change(layer.get("type")))


@spelling
def lower_case_types(root):
    _set_types(root, str.lower, "MatMul", "Parameter", "Multiply", "ReadValue", "If")


@spelling
def upper_case_types(root):
    _set_types(root, str.upper, "MatMul", "Convert", "Reshape", "ReLU")


@spelling
def lower_case_result(root):
    """OpenVINO finds no output then, hence no layer."""
    _set_types(root, str.lower, "Result")


def _booleans(root, true, false):
    for data in root.iter("data"):
        for key in ("transpose_a", "transpose_b"):
            if key in data.attrib:
                data.set(key, true if data.get(key) == "true" else false)


@spelling
def numeric_booleans(root):
    _booleans(root, "1", "0")


@spelling
def upper_case_booleans(root):
    _booleans(root, "TRUE", "FALSE")


@spelling
def version_10(root):
    """As the Model Optimizer of 2021 wrote it, metadata included."""
    root.set("version", "10")
    for parent in [root, *root.iter("layer")]:
        for child in parent.findall("rt_info"):
            parent.remove(child)
    meta = ET.SubElement(root, "meta_data")
    ET.SubElement(meta, "MO_version", value="2021.4")
    arguments = ET.SubElement(meta, "cli_parameters")
    ET.SubElement(arguments, "data_type", value="FP32")
    ET.SubElement(arguments, "unset", unset_cli_parameters="a, b")
    quantization = ET.SubElement(root, "quantization_parameters")
    ET.SubElement(quantization, "config").text = "{\n    'compression': 1}"
    ET.SubElement(quantization, "version", value="1.0")


@spelling
def wrong_port_precisions(root):
    for port in root.iter("port"):
        if port.get("precision") == "FP32":
            port.set("precision", "FP16")


@spelling
def ports_from_five(root):
    for layer in root.find("layers"):
        for port in layer.findall("input/port") + layer.findall("output/port"):
            port.set("id", str(int(port.get("id")) + 5))
    for edge in root.find("edges"):
        for key in ("from-port", "to-port"):
            edge.set(key, str(int(edge.get(key)) + 5))


@spelling
def scattered(root):
    """Layers and edges in any order, sparse ids, comments, no dimensions."""
    new = {layer.get("id"): str(1_000_003 - 7 * int(layer.get("id"))) for layer in root.find("layers")}
    for layer in root.find("layers"):
        layer.set("id", new[layer.get("id")])
    for edge in root.find("edges"):
        edge.set("from-layer", new[edge.get("from-layer")])
        edge.set("to-layer", new[edge.get("to-layer")])
    for tag in ("layers", "edges"):
        parent = root.find(tag)
        children = list(parent)
        random.Random(tag).shuffle(children)
        parent[:] = [ET.Comment(" any order ")] + children
    for port in root.iter("port"):
        for dim in port.findall("dim"):
            port.remove(dim)


@spelling
def no_layer_version(root):
    for layer in root.iter("layer"):
        layer.attrib.pop("version", None)


@spelling
def element_types_of_ports(root):
    for data in root.iter("data"):
        if data.get("element_type") == "f32":
            data.set("element_type", "FP32")


@spelling
def equal_names(root):
    for layer in root.find("layers"):
        layer.set("name", "same")


def save(name: str, source: pathlib.Path) -> pathlib.Path:
    path = source.with_name(f"{source.stem}-{name}.xml")
    if not path.exists():
        tree = ET.parse(source)
        SPELLINGS[name](tree.getroot())
        tree.write(path, encoding="utf-8", xml_declaration=True)
        shutil.copy(source.with_suffix(".bin"), path.with_suffix(".bin"))
    return path
