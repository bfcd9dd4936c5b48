"""Make schemas.json, the schemas of KubeRay's RayJob and RayCronJob, from the CRDs in a clone of KubeRay.

python tests/kuberay/make.py CLONE v1.7.0
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

CRD = "helm-chart/kuberay-operator/crds/ray.io_{}.yaml"
KINDS = {"RayJob": "rayjobs", "RayCronJob": "raycronjobs"}
DROPPED = ("description", "default", "format")
"""Keywords that say nothing on whether a manifest is valid."""

METADATA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "namespace": {"type": "string"}},
    "required": ["name"],
    "additionalProperties": False,
}

SHARED_LENGTH = 80
"""Minimum length of a schema that is written once, below `$defs`, however often it occurs."""


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Return an OpenAPI schema as JSON Schema, in which objects have no other fields than those that it lists.

    The API server drops other fields in silence. Rules in CEL (`x-kubernetes-validations`) are left out.
    """
    is_open = "additionalProperties" in schema or "x-kubernetes-preserve-unknown-fields" in schema
    kept = {key: value for key, value in schema.items() if key not in DROPPED and not key.startswith("x-kubernetes-")}
    if "properties" in kept:
        kept["properties"] = {name: strict(value) for name, value in kept["properties"].items()}
    for key in ("items", "additionalProperties"):
        if key in kept:
            kept[key] = strict(kept[key])
    if kept.get("type") == "object" and not is_open:
        kept["additionalProperties"] = False
    return kept


def share(schema: Any, shared: dict[str, str]) -> Any:
    """Return a schema with references to `shared`, {text of a schema: its name}, which is added to."""
    if isinstance(schema, list):
        return [share(one, shared) for one in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: share(value, shared) for key, value in schema.items()}
    text = as_text(schema)
    if len(text) < SHARED_LENGTH or not isinstance(schema.get("type"), str):  # short, or the fields of an object
        return schema
    return {"$ref": "#/$defs/" + shared.setdefault(text, str(len(shared)))}


def as_text(value: Any) -> str:
    """Return compact JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def main(clone: str, tag: str) -> None:
    """Write schemas.json beside this file, with one schema a line."""
    schemas, shared = {}, {}
    for kind, name in KINDS.items():
        command = ["git", "-C", clone, "show", f"{tag}:{CRD.format(name)}"]
        crd = yaml.safe_load(subprocess.run(command, capture_output=True, check=True).stdout)
        [version] = [version for version in crd["spec"]["versions"] if version["storage"]]
        schema = strict(version["schema"]["openAPIV3Schema"])
        del schema["properties"]["status"]  # written by the operator
        schema["properties"] |= {
            "apiVersion": {"const": f"{crd['spec']['group']}/{version['name']}"},
            "kind": {"const": kind},
            "metadata": METADATA,  # which a CRD leaves to the API server
        }
        schema["required"] = sorted(schema["properties"])
        schemas[kind] = as_text(share(schema, shared))
    schemas |= {name: text for text, name in shared.items()}
    origin = f"RayJob and RayCronJob of KubeRay {tag} (Apache License 2.0), written by {Path(__file__).name}"
    lines = ",\n".join(f'"{name}":{text}' for name, text in schemas.items())
    file = Path(__file__).with_name("schemas.json")
    file.write_text(f'{{"$comment":{as_text(origin)},"$defs":{{\n{lines}\n}}}}\n')


if __name__ == "__main__":
    main(*sys.argv[1:])
