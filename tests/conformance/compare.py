"""What "the same result as NNCF" means, as code.

Two IRs agree if
- the same constants exist, by name, with the same element type, shape and bytes
  (the padding nibble of an odd number of 4-bit elements aside);
- the graphs are isomorphic: walked from Results, Assigns and Parameters
  through the input ports, each pair of layers has the same type, opset,
  attributes, port shapes and precisions, tensor names and rt_info, and the
  same name wherever a name was given (names that OpenVINO invents, such as
  Convert_17, need only be unique);
- bodies of If, Loop and TensorIterator agree in the same way;
- the model's rt_info has the same values: all of `nncf` and all that was there
  before; beside it stands a section `ovpress`.

Inference results are compared apart (see inference.py); they follow from the
above, but what follows should also be seen.
"""

from __future__ import annotations

import re

from ir_xml import Graph, Layer

FOUR_BIT = {"u4", "i4", "nf4", "f4e2m1"}
# rt_info that belongs to the writing program, not to the result.
RUNTIME_KEY = "OpenVINO Runtime"
OWN_SECTION = "ovpress"
# Enough to see the pattern, few enough to read.
MAX_DIFFERENCES = 12


def is_generated_name(layer: Layer) -> bool:
    """True for a name that OpenVINO made up from the type and a counter."""
    kind = "Constant" if layer.type == "Const" else layer.type
    # Inside NNCF's codebook, the axis constant gets its parent's name in front.
    return re.fullmatch(rf"(.*_nncf_codebook/)?{re.escape(kind)}_\d+", layer.name) is not None


def _element_count(layer: Layer) -> int:
    count = 1
    for dim in layer.attributes.get("shape", "").split(","):
        if dim.strip():
            count *= int(dim)
    return count


def constant_bytes(layer: Layer) -> bytes:
    data = bytes(layer.data)
    if _element_count(layer) == 0:
        return b""  # OpenVINO may store a byte for none
    if layer.attributes.get("element_type") in FOUR_BIT and _element_count(layer) % 2 and data:
        data = data[:-1] + bytes([data[-1] & 0x0F])
    return data


def describe_bytes(theirs: bytes, ours: bytes) -> str:
    if len(theirs) != len(ours):
        return f"{len(ours)} bytes, NNCF has {len(theirs)}"
    at = [i for i, (a, b) in enumerate(zip(theirs, ours)) if a != b]
    first = at[0]
    return (
        f"{len(at)} of {len(theirs)} bytes differ, first at {first}: "
        f"{ours[first : first + 8].hex(' ')}, NNCF has {theirs[first : first + 8].hex(' ')}"
    )


class Comparison:
    """Collects differences of `ours` against `theirs` (NNCF's)."""

    def __init__(self, given_names: set[str]):
        # Names of the input model: given even if they look generated.
        self._given = given_names
        self.differences: list[str] = []

    def say(self, text: str) -> None:
        if len(self.differences) < MAX_DIFFERENCES:
            self.differences.append(text)

    # ---- constants by name -------------------------------------------------
    def _constants(self, graph: Graph) -> dict[str, Layer]:
        return {
            layer.name: layer for layer in graph.of_type("Const") if layer.name in self._given or not is_generated_name(layer)
        }

    def constants(self, theirs: Graph, ours: Graph) -> None:
        a, b = self._constants(theirs), self._constants(ours)
        for name in sorted(a.keys() - b.keys()):
            if not is_generated_name(a[name]):
                self.say(f"constant '{name}' ({self._kind(a[name])}) is missing")
        for name in sorted(b.keys() - a.keys()):
            if not is_generated_name(b[name]):
                self.say(f"constant '{name}' ({self._kind(b[name])}) is not in NNCF's result")
        for name in sorted(a.keys() & b.keys()):
            if self._kind(a[name]) != self._kind(b[name]):
                self.say(f"constant '{name}' is {self._kind(b[name])}, NNCF has {self._kind(a[name])}")
            elif constant_bytes(a[name]) != constant_bytes(b[name]):
                self.say(
                    f"constant '{name}' ({self._kind(a[name])}): "
                    f"{describe_bytes(constant_bytes(a[name]), constant_bytes(b[name]))}"
                )

    @staticmethod
    def _kind(layer: Layer) -> str:
        return f"{layer.attributes.get('element_type')}[{layer.attributes.get('shape')}]"

    # ---- the graph ---------------------------------------------------------
    def _roots(self, graph: Graph) -> list[Layer]:
        assigns = sorted(graph.of_type("Assign"), key=lambda layer: layer.attributes.get("variable_id", ""))
        return graph.of_type("Result") + assigns + graph.of_type("Parameter")

    def graphs(self, theirs: Graph, ours: Graph, where: str = "") -> dict[int, int]:
        pairs: dict[int, int] = {}
        taken: dict[int, int] = {}
        a_roots, b_roots = self._roots(theirs), self._roots(ours)
        for kind in ("Result", "Assign", "Parameter"):
            a_count = sum(layer.type == kind for layer in a_roots)
            b_count = sum(layer.type == kind for layer in b_roots)
            if a_count != b_count:
                self.say(f"{where}{b_count} layers of type {kind}, NNCF has {a_count}")
                return pairs
        stack = list(zip(a_roots, b_roots))[::-1]
        while stack:
            a, b = stack.pop()
            if a.id in pairs or b.id in taken:
                if pairs.get(a.id) != b.id or taken.get(b.id) != a.id:
                    self.say(f"{where}'{b.name}' stands where NNCF has '{a.name}', and they were paired with others before")
                continue
            pairs[a.id], taken[b.id] = b.id, a.id
            if not self._layer(a, b, where):
                continue
            for port in sorted(a.sources.keys() | b.sources.keys()):
                if port not in a.sources or port not in b.sources:
                    self.say(f"{where}'{b.name}' input {port} is connected in only one of the models")
                    continue
                (a_id, a_out), (b_id, b_out) = a.sources[port], b.sources[port]
                if a_out != b_out:
                    self.say(f"{where}'{b.name}' input {port} comes from output {b_out}, NNCF has {a_out}")
                stack.append((theirs.layers[a_id], ours.layers[b_id]))
        if not self.differences:
            for layer in theirs.layers.values():
                if layer.id not in pairs:
                    self.say(f"{where}{layer.type} '{layer.name}' is missing")
            for layer in ours.layers.values():
                if layer.id not in taken:
                    self.say(f"{where}{layer.type} '{layer.name}' is not in NNCF's result")
        return pairs

    def _layer(self, a: Layer, b: Layer, where: str) -> bool:
        """Compares one pair; False if their inputs are not worth comparing."""
        who = f"{where}{a.type} '{a.name}'"
        if (a.type, a.version) != (b.type, b.version):
            self.say(f"{who}: ours is {b.type} ({b.version}) '{b.name}', NNCF has {a.type} ({a.version})")
            return False
        # NNCF's counter starts far above the names of the inputs (see Oracle), so
        # a name of the input is never one that was invented by chance.
        invented = is_generated_name(a) and a.name not in self._given and is_generated_name(b)
        if a.name != b.name and not invented:
            self.say(f"{who}: ours is named '{b.name}'")
        if a.attributes != b.attributes:
            keys = [k for k in sorted(a.attributes.keys() | b.attributes.keys()) if a.attributes.get(k) != b.attributes.get(k)]
            self.say(
                f"{who}: attributes differ: "
                + ", ".join(f"{k}={b.attributes.get(k)!r}, NNCF has {a.attributes.get(k)!r}" for k in keys)
            )
        if a.extra != b.extra:
            self.say(f"{who}: layer attributes {b.extra}, NNCF has {a.extra}")
        if a.inputs != b.inputs:
            self.say(f"{who}: input ports {b.inputs}, NNCF has {a.inputs}")
        if a.outputs != b.outputs:
            self.say(f"{who}: output ports {b.outputs}, NNCF has {a.outputs}")
        if a.rt_info != b.rt_info:
            self.say(f"{who}: rt_info {b.rt_info or 'none'}, NNCF has {a.rt_info or 'none'}")
        if a.data is not None and constant_bytes(a) != constant_bytes(b):
            self.say(f"{who}: {describe_bytes(constant_bytes(a), constant_bytes(b))}")
        if a.bodies.keys() != b.bodies.keys():
            self.say(f"{who}: other bodies")
            return True
        ids: dict[str, dict[int, int]] = {}
        for tag in a.bodies:
            ids[tag] = self.graphs(a.bodies[tag], b.bodies[tag], f"{where}{a.name}/{tag}: ")
        if a.bodies and not self.differences:
            self._port_maps(a, b, ids, who)
        return True

    def _port_maps(self, a: Layer, b: Layer, ids: dict[str, dict[int, int]], who: str) -> None:
        def rows(layer: Layer, translate: bool) -> list[str]:
            out = []
            for tag, kind, attributes in layer.port_maps:
                attributes = dict(attributes)
                body = tag.replace("_port_map", "_body") if tag.endswith("_port_map") else "body"
                if translate:
                    names = ("from-layer", "to-layer") if tag == "back_edges" else ("internal_layer_id",)
                    for key in names:
                        attributes[key] = str(ids[body].get(int(attributes[key])))
                out.append(f"{tag}/{kind} {sorted(attributes.items())}")
            return sorted(out)

        if rows(a, True) != rows(b, False):
            self.say(f"{who}: port maps {rows(b, False)}, NNCF has {rows(a, True)}")

    # ---- rt_info -----------------------------------------------------------
    def rt_info(self, theirs: Graph, ours: Graph) -> None:
        def kept(values: dict[str, str]) -> dict[str, str]:
            return {k: v for k, v in values.items() if k != RUNTIME_KEY and k.split("/")[0] != OWN_SECTION}

        a, b = kept(theirs.rt_info), kept(ours.rt_info)
        for key in sorted(a.keys() | b.keys()):
            if a.get(key) != b.get(key):
                self.say(f"rt_info {key} = {b.get(key)!r}, NNCF has {a.get(key)!r}")
        if not any(key.split("/")[0] == OWN_SECTION for key in ours.rt_info):
            self.say(f"rt_info has no section '{OWN_SECTION}'")


def unique_names(graph: Graph, theirs: Graph) -> list[str]:
    """Names that occur twice in ours though not in NNCF's."""
    seen: dict[str, int] = {}
    for layer in graph.layers.values():
        seen[layer.name] = seen.get(layer.name, 0) + 1
    allowed: dict[str, int] = {}
    for layer in theirs.layers.values():
        allowed[layer.name] = allowed.get(layer.name, 0) + 1
    return [f"the name '{name}' occurs {n} times" for name, n in seen.items() if n > max(1, allowed.get(name, 0))]


def compare(theirs: Graph, ours: Graph, given_names: set[str]) -> list[str]:
    """Differences as sentences, most telling first; empty if the two agree."""
    comparison = Comparison(given_names)
    comparison.constants(theirs, ours)
    comparison.graphs(theirs, ours)
    comparison.rt_info(theirs, ours)
    for text in unique_names(ours, theirs):
        comparison.say(text)
    return comparison.differences
