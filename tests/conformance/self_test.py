"""Proves that the comparer sees what it must see.

NNCF's result of a small model is taken as "ours"; untouched it must agree, and
after each of a list of small falsifications it must not.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import sys
import tempfile
from typing import Callable

import compare
import inference
import ir_xml
import zoo
from oracle import Oracle
from options import Options

MODEL = "mlp_large"
OPTIONS = Options("int4_asym", group_size=32, ratio=0.5, all_layers=True)


def _sub(pattern: str, text: str) -> Callable[[str], str]:
    def change(xml: str) -> str:
        changed, count = re.subn(pattern, text, xml, count=1, flags=re.S)
        assert count == 1, f"nothing matches {pattern}"
        return changed

    return change


def _flip(name: str, byte: int) -> Callable[[str, bytearray], None]:
    """Changes one byte of the constant `name` in the .bin."""

    def change(xml: str, weights: bytearray) -> None:
        match = re.search(rf'name="{re.escape(name)}" type="Const".*?offset="(\d+)"', xml, re.S)
        weights[int(match.group(1)) + byte] ^= 0x10

    return change


# name of the falsification, change of the XML, change of the .bin, a part of
# the sentence that must report it
FALSIFICATIONS: list[tuple[str, Callable | None, Callable | None, str]] = [
    ("one code changed", None, _flip("big0.weight", 1000), "constant 'big0.weight'"),
    ("one scale changed", None, _flip("big0.weight/scale", 0), "constant 'big0.weight/scale'"),
    ("one zero point changed", None, _flip("head.weight/zero_point", 3), "constant 'head.weight/zero_point'"),
    ("constant renamed", _sub('name="big0.weight/scale"', 'name="big0.weight/scales"'), None, "constant 'big0.weight/scale'"),
    ("node renamed", _sub('name="big1" type="MatMul"', 'name="big-1" type="MatMul"'), None, "'big1'"),
    ("inserted node renamed", _sub('name="big1.weight/fq_weights_1"', 'name="big1.weight/fq"'), None, "big1.weight/fq_weights_1"),
    ("attribute changed", _sub('transpose_b="true"', 'transpose_b="false"'), None, "transpose_b"),
    ("opset changed", _sub('type="Subtract" version="opset1"', 'type="Subtract" version="opset2"'), None, "opset2"),
    ("type changed", _sub('type="Subtract"', 'type="Add"'), None, "Subtract"),
    ("element type changed", _sub('element_type="u4"', 'element_type="i4"'), None, "i4["),
    ("tensor name lost", _sub('names="x"', 'names="y"'), None, "output ports"),
    ("rt_info value changed", _sub('<ratio value="0.5" />', '<ratio value="0.50" />'), None, "weight_compression/ratio"),
    ("rt_info value missing", _sub('<group_size value="32" />', ""), None, "weight_compression/group_size"),
    ("own section missing", _sub("<ovpress>.*</ovpress>", ""), None, "no section 'ovpress'"),
    ("input edge moved", _sub(r'<edge from-layer="(\d+)" from-port="0" to-layer="(\d+)" to-port="0" />', r'<edge from-layer="\1" from-port="0" to-layer="\2" to-port="1" />'), None, ""),
    ("node rt_info added", _sub(r'(<layer [^>]*name="big1" type="MatMul"[^>]*>)', r'\1<rt_info><attribute name="x" version="0" /></rt_info>'), None, "rt_info"),
    ("name used twice", _sub(r'name="Reshape_\d+"', 'name="big1.weight/fq_weights_1"'), None, "big1.weight/fq_weights_1"),
]


def _graph(directory: pathlib.Path, name: str) -> ir_xml.Graph:
    return ir_xml.read(directory / f"{name}.xml")


def main() -> int:
    sys.stdout.flush()
    out = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # NNCF prints tables
    failures: list[str] = []
    checks = 0
    with tempfile.TemporaryDirectory() as temporary:
        work = pathlib.Path(temporary)
        oracle = Oracle(work)
        source = zoo.MODELS[MODEL].save(work)
        given = {layer.name for layer in ir_xml.read(source).layers.values()}
        verdict = oracle.judge(source, OPTIONS)
        theirs = ir_xml.read(verdict.xml)
        xml = verdict.xml.read_text().replace("</rt_info>\n</net>", "<ovpress><version value='0' /></ovpress></rt_info>\n</net>")
        weights = verdict.xml.with_suffix(".bin").read_bytes()

        def check(name: str, good: bool, detail: object = "") -> None:
            nonlocal checks
            checks += 1
            if not good:
                failures.append(f"{name}: {detail}")

        def falsified(name: str, text: str, data: bytes) -> list[str]:
            (work / f"{name}.xml").write_text(text)
            (work / f"{name}.bin").write_bytes(data)
            try:
                ours = _graph(work, name)
            except KeyError as error:
                return [f"not readable: {error}"]
            return compare.compare(theirs, ours, given)

        differences = falsified("same", xml, weights)
        check("an equal model agrees", not differences, differences)
        # Invented names may differ; layers may come in another order.
        renamed = re.sub(r'name="(Convert|Reshape|Constant)_(\d+)"', r'name="\1_9\2"', xml)
        check("invented names are free", not (found := falsified("renamed", renamed, weights)), found)
        for name, change_xml, change_bin, expected in FALSIFICATIONS:
            data = bytearray(weights)
            if change_bin is not None:
                change_bin(xml, data)
            found = falsified("false", change_xml(xml) if change_xml else xml, bytes(data))
            check(name, bool(found) and any(expected in text for text in found), found or "not seen")

        # The padding nibble of an odd number of 4-bit elements is free.
        odd = zoo.MODELS["odd_sizes"].save(work)
        verdict = oracle.judge(odd, Options("int4_sym", group_size=-1))
        given = {layer.name for layer in ir_xml.read(odd).layers.values()}
        theirs = ir_xml.read(verdict.xml)
        text = verdict.xml.read_text().replace("</rt_info>\n</net>", "<ovpress><version value='0' /></ovpress></rt_info>\n</net>")
        data = bytearray(verdict.xml.with_suffix(".bin").read_bytes())
        last = theirs.of_type("Const")
        weight = next(layer for layer in last if layer.name == "fc0.weight")
        assert weight.attributes["element_type"] == "i4" and len(weight.data) == 46
        place = int(re.search(r'name="fc0.weight" type="Const".*?offset="(\d+)"', text, re.S).group(1))
        data[place + 45] ^= 0xF0
        check("padding nibble is free", not (found := falsified("odd", text, bytes(data))), found)
        data[place + 45] ^= 0x01
        check("last element is not free", bool(falsified("odd", text, bytes(data))), "not seen")

        # Bodies are compared too.
        branch = zoo.MODELS["if_bodies"].save(work)
        verdict = oracle.judge(branch, Options("int8_sym"))
        given = {layer.name for layer in ir_xml.read(branch).layers.values()}
        theirs = ir_xml.read(verdict.xml)
        text = verdict.xml.read_text().replace("</rt_info>\n</net>", "<ovpress><version value='0' /></ovpress></rt_info>\n</net>")
        data = bytearray(verdict.xml.with_suffix(".bin").read_bytes())
        check("equal bodies agree", not (found := falsified("body", text, bytes(data))), found)
        place = int(re.search(r'name="then/w" type="Const".*?offset="(\d+)"', text, re.S).group(1))
        data[place + 2] ^= 0x01
        check("byte in a body", bool(falsified("body", text, bytes(data))), "not seen")
        data[place + 2] ^= 0x01
        check("port map", bool(falsified("body", _sub('external_port_id="1" internal_layer_id="0"', 'external_port_id="0" internal_layer_id="0"')(text), bytes(data))), "not seen")

        # Inference sees a changed weight; NNCF quickened equals NNCF as it is.
        (work / "a.xml").write_text(xml)
        (work / "a.bin").write_bytes(weights)
        data = bytearray(weights)
        _flip("big1.weight", 9)(xml, data)
        (work / "b.xml").write_text(xml)
        (work / "b.bin").write_bytes(data)
        check("equal inference", inference.compare(oracle.core, work / "a.xml", work / "a.xml") == [])
        check("different inference", bool(inference.compare(oracle.core, work / "a.xml", work / "b.xml")), "not seen")

        # Run last: `plain` in a fresh process, for quickening cannot be undone.
        quick = {}
        cases = [Options("int4_asym", group_size=32, ratio=0.5), Options("int4_sym", group_size=-1, ratio=0.3), Options("int8_sym")]
        cases += [Options(mode, group_size=32, ratio=0.8) for mode in ("nf4", "fp4", "fp8_e4m3", "mxfp4", "cb4")] + [Options("nvfp4")]
        for i, options in enumerate(cases):
            verdict = oracle.judge(source, options)
            for suffix in (".xml", ".bin"):
                shutil.copy(verdict.xml.with_suffix(suffix), work / f"quick{i}{suffix}")
            quick[i] = _graph(work, f"quick{i}")
        import subprocess

        script = (
            "import sys,pathlib; sys.path.insert(0, sys.argv[1]); from oracle import Oracle; from options import Options\n"
            "w=pathlib.Path(sys.argv[2]); o=Oracle(w, plain=True)\n"
            "for i, k in enumerate(eval(sys.argv[4])):\n"
            "    v=o.judge(pathlib.Path(sys.argv[3]), k); o.rewrite(v.xml, w/f'plain{i}.xml')\n"
        )
        here = str(pathlib.Path(__file__).resolve().parent)
        subprocess.run([sys.executable, "-c", script, here, str(work), str(source), repr(cases)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        given = {layer.name for layer in ir_xml.read(source).layers.values()}
        for i, options in enumerate(cases):
            found = [text for text in compare.compare(_graph(work, f"plain{i}"), quick[i], given) if "ovpress" not in text]
            check(f"quickened NNCF, {options.label()}", not found, found)
    sys.stdout.flush()
    os.dup2(out, 1)
    for text in failures:
        print(f"FAILED {text}")
    print(f"{checks - len(failures)} passed, {len(failures)} failed")
    return 1 if failures else 0
