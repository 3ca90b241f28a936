"""As much of Kustomize as deploy/kubernetes uses, so that the tests need no
kubectl. Whatever it does not know is an error; where kubectl is installed,
run.py compares the two."""

from __future__ import annotations

import copy
import hashlib
import pathlib

import yaml

KNOWN = {"apiVersion", "kind", "resources", "components", "namespace", "labels", "images", "configMapGenerator", "patches"}
# Kinds without a namespace.
CLUSTER_KINDS = {"Namespace"}


def load_all(path: pathlib.Path) -> list[dict]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def json_patch(document: dict, operations: list[dict]) -> None:
    for operation in operations:
        *path, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
        target = document
        for part in path:
            target = target[int(part) if isinstance(target, list) else part]
        op = operation["op"]
        if isinstance(target, list):
            if op == "add" and last == "-":
                target.append(operation["value"])
            elif op == "replace":
                target[int(last)] = operation["value"]
            else:
                raise ValueError(f"{op} {operation['path']}: not known here")
        elif op == "add":
            target[last] = operation["value"]
        elif op == "replace":
            if last not in target:
                raise ValueError(f"replace {operation['path']}: there is nothing")
            target[last] = operation["value"]
        elif op == "remove":
            del target[last]
        else:
            raise ValueError(f"{op}: not known here")


def build(folder: pathlib.Path) -> list[dict]:
    """The documents of an overlay, as `kubectl kustomize` prints them but for
    the hash in a generated name."""
    documents: list[dict] = []
    generated: list[dict] = []
    accumulate(folder, documents, generated)
    names = {}
    for document in generated:
        name = document["metadata"]["name"]
        digest = hashlib.sha256(repr(sorted(document["data"].items())).encode()).hexdigest()[:10]
        names[name] = document["metadata"]["name"] = f"{name}-{digest}"
    for document in documents:
        rename_config_maps(document, names)
    return documents


def rename_config_maps(node, names: dict) -> None:
    if isinstance(node, dict):
        reference = node.get("configMap")
        if isinstance(reference, dict) and "name" in reference:
            reference["name"] = names[reference["name"]]
        for value in node.values():
            rename_config_maps(value, names)
    elif isinstance(node, list):
        for value in node:
            rename_config_maps(value, names)


def accumulate(folder: pathlib.Path, documents: list[dict], generated: list[dict]) -> None:
    spec = yaml.safe_load((folder / "kustomization.yaml").read_text())
    unknown = set(spec) - KNOWN
    if unknown:
        raise ValueError(f"{folder}: {unknown} is not known to tests/deploy/kustomize.py")
    for name in spec.get("resources", []):
        path = folder / name
        if path.is_dir():
            # Its own list: what it changes is not what stands beside it.
            below: list[dict] = []
            accumulate(path, below, generated)
            documents += below
        else:
            documents += copy.deepcopy(load_all(path))
    for name in spec.get("components", []):
        # A component changes what the folder has so far.
        accumulate(folder / name, documents, generated)
    for entry in spec.get("configMapGenerator", []):
        data = {pathlib.Path(f).name: (folder / f).read_text() for f in entry["files"]}
        if entry.get("behavior") == "merge":
            next(d for d in generated if d["metadata"]["name"] == entry["name"])["data"].update(data)
        else:
            generated.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": entry["name"]}, "data": data})
            documents.append(generated[-1])
    for patch in spec.get("patches", []):
        matched = [d for d in documents if d["kind"] == patch["target"]["kind"] and d["metadata"].get("name") == patch["target"]["name"]]
        if not matched:
            raise ValueError(f"{folder}: no {patch['target']} to patch")
        for document in matched:
            json_patch(document, yaml.safe_load(patch["patch"]))
    for entry in spec.get("labels", []):
        for document in documents:
            document["metadata"].setdefault("labels", {}).update(entry["pairs"])
    for entry in spec.get("images", []):
        for document in documents:
            for container in containers(document):
                image, _, tag = container["image"].partition(":")
                if image == entry["name"]:
                    container["image"] = f"{entry.get('newName', image)}:{entry.get('newTag', tag)}"
    if "namespace" in spec:
        for document in documents:
            if document["kind"] not in CLUSTER_KINDS:
                document["metadata"]["namespace"] = spec["namespace"]


def pod_spec(document: dict) -> dict | None:
    """The pod's specification inside a StatefulSet, Job or CronJob."""
    spec = document.get("spec", {})
    if document["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    return spec["template"]["spec"] if "template" in spec else None


def pod_labels(document: dict) -> dict:
    spec = document["spec"]["jobTemplate"]["spec"] if document["kind"] == "CronJob" else document["spec"]
    return spec["template"]["metadata"]["labels"]


def containers(document: dict) -> list[dict]:
    spec = pod_spec(document)
    return (spec.get("initContainers", []) + spec["containers"]) if spec else []
