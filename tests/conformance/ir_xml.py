"""Reads an OpenVINO IR (.xml + .bin) into plain Python objects.

Only for comparing: nothing is interpreted beyond layers, edges, bodies of
If/Loop/TensorIterator and rt_info.
"""

from __future__ import annotations

import pathlib
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field

# Attributes of a Const that say where its bytes lie, not what they are.
_PLACE = ("offset", "size")


@dataclass
class Layer:
    id: int
    name: str
    type: str
    version: str
    attributes: dict[str, str]  # of <data>, without offset and size
    extra: dict[str, str]  # other attributes of <layer>, such as output_names
    inputs: list[tuple]  # (precision, dims) in port order
    outputs: list[tuple]  # (precision, dims, names) in port order
    rt_info: str  # canonical text
    data: memoryview | None = None  # of a Const
    bodies: dict[str, "Graph"] = field(default_factory=dict)
    port_maps: list[tuple] = field(default_factory=list)
    # Filled from <edges>: (layer id, output index) by input index.
    sources: dict[int, tuple[int, int]] = field(default_factory=dict)
    _ports_in: dict[int, int] = field(default_factory=dict)
    _ports_out: dict[int, int] = field(default_factory=dict)


@dataclass
class Graph:
    layers: dict[int, Layer]  # in file order
    rt_info: dict[str, str]  # flattened: "nncf/version" -> value
    rt_order: list[str]

    def of_type(self, kind: str) -> list[Layer]:
        return [layer for layer in self.layers.values() if layer.type == kind]


def canonical(element: ET.Element | None) -> str:
    """The element as text, attributes sorted, white space between tags dropped."""
    if element is None:
        return ""
    attributes = " ".join(f"{k}={v!r}" for k, v in sorted(element.attrib.items()))
    children = "".join(sorted(canonical(child) for child in element))
    return f"<{element.tag} {attributes}>{(element.text or '').strip()}{children}</>"


def _port(element: ET.Element) -> tuple:
    dims = tuple(dim.text for dim in element.findall("dim"))
    names = tuple(sorted(_split_names(element.get("names", ""))))
    return element.get("precision", ""), dims, names


def _split_names(text: str) -> list[str]:
    # Tensor names are separated by commas; a comma inside a name is escaped.
    out, current, escaped = [], "", False
    for char in text:
        if escaped:
            current += char
            escaped = False
        elif char == "\\":
            escaped = True
            current += char
        elif char == ",":
            out.append(current)
            current = ""
        else:
            current += char
    return [name for name in out + [current] if name]


def _flatten(element: ET.Element, prefix: str, values: dict[str, str], order: list[str]) -> None:
    for child in element:
        # <info name="OpenVINO Runtime" .../> is keyed by its name.
        key = child.get("name") if child.tag == "info" else child.tag
        path = f"{prefix}/{key}" if prefix else key
        if "value" in child.attrib:
            values[path] = child.get("value")
            order.append(path)
        _flatten(child, path, values, order)


def _read_body(body: ET.Element, weights: memoryview) -> Graph:
    layers: dict[int, Layer] = {}
    for element in body.find("layers") or []:
        data = element.find("data")
        attributes = dict(data.attrib) if data is not None else {}
        layer = Layer(
            id=int(element.get("id")),
            name=element.get("name", ""),
            type=element.get("type", ""),
            version=element.get("version", ""),
            attributes={k: v for k, v in attributes.items() if element.get("type") != "Const" or k not in _PLACE},
            extra={k: v for k, v in element.attrib.items() if k not in ("id", "name", "type", "version")},
            inputs=[],
            outputs=[],
            rt_info=canonical(element.find("rt_info")),
        )
        if layer.type == "Const":
            begin, size = int(attributes["offset"]), int(attributes["size"])
            if begin + size > len(weights):
                raise ValueError(f"constant {layer.name} leaves the .bin: {begin}+{size} > {len(weights)}")
            layer.data = weights[begin : begin + size]
        for index, port in enumerate(element.findall("input/port")):
            layer._ports_in[int(port.get("id"))] = index
            layer.inputs.append(_port(port)[:2])
        for index, port in enumerate(element.findall("output/port")):
            layer._ports_out[int(port.get("id"))] = index
            layer.outputs.append(_port(port))
        for tag in ("body", "then_body", "else_body"):
            if element.find(tag) is not None:
                layer.bodies[tag] = _read_body(element.find(tag), weights)
        for tag in ("port_map", "then_port_map", "else_port_map", "back_edges"):
            if element.find(tag) is not None:
                layer.port_maps += [(tag, row.tag, dict(row.attrib)) for row in element.find(tag)]
        layers[layer.id] = layer
    for edge in body.find("edges") if body.find("edges") is not None else []:
        source, target = layers[int(edge.get("from-layer"))], layers[int(edge.get("to-layer"))]
        target.sources[target._ports_in[int(edge.get("to-port"))]] = (
            source.id,
            source._ports_out[int(edge.get("from-port"))],
        )
    values: dict[str, str] = {}
    order: list[str] = []
    if body.find("rt_info") is not None:
        _flatten(body.find("rt_info"), "", values, order)
    return Graph(layers, values, order)


def read(xml_path: pathlib.Path) -> Graph:
    xml_path = pathlib.Path(xml_path)
    bin_path = xml_path.with_suffix(".bin")
    weights = memoryview(bin_path.read_bytes() if bin_path.exists() else b"")
    return _read_body(ET.parse(xml_path).getroot(), weights)
