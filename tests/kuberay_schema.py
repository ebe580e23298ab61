"""The part of KubeRay's schema of a RayJob that docs/cluster/kuberay.yaml uses, for tests without the whole 1.4 MB.

`python tests/kuberay_schema.py ray.io_rayjobs.yaml` reads the published definition (ray-operator/config/crd/bases in
github.com/ray-project/kuberay, Apache-2.0), holds the whole example against it, and writes the part: do so when a test
says that the example uses what the part does not have.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jsonschema
import yaml

HERE = Path(__file__).parent
PART = HERE / "kuberay_schema.json"
EXAMPLE = HERE.parent / "docs" / "cluster" / "kuberay.yaml"
SOURCE = (
    "KubeRay 1.7.0, feeaf72, ray-operator/config/crd/bases/ray.io_rayjobs.yaml, Apache-2.0; only what the example uses"
)


def ray_job() -> Any:
    """Return the RayJob of the example."""
    (job,) = [part for part in yaml.safe_load_all(EXAMPLE.read_text()) if part["kind"] == "RayJob"]
    return job


def closed(schema: Any) -> Any:
    """Return a schema of Kubernetes as a strict JSON schema: a field that it does not know is an error."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    strict = {
        name: schema[name] for name in ("type", "enum", "required", "pattern", "minimum", "format") if name in schema
    }
    if "properties" in schema:
        strict["properties"] = {name: closed(field) for name, field in schema["properties"].items()}
        strict["additionalProperties"] = False
    if isinstance(schema.get("additionalProperties"), dict):
        strict["additionalProperties"] = closed(schema["additionalProperties"])
    if "items" in schema:
        strict["items"] = closed(schema["items"])
    return strict


def used(schema: Any, values: list[Any]) -> Any:
    """Return a schema without the fields that none of these values has."""
    part = dict(schema)
    if "properties" in schema:
        fields = {name: [value[name] for value in values if name in value] for name in schema["properties"]}
        part["properties"] = {name: used(schema["properties"][name], found) for name, found in fields.items() if found}
    if "items" in schema:
        part["items"] = used(schema["items"], [item for value in values for item in value])
    return part


def main() -> None:
    """Write the part that the example uses."""
    definition = yaml.safe_load(Path(sys.argv[1]).read_text())
    (version,) = [version for version in definition["spec"]["versions"] if version["name"] == "v1"]
    schema = closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}  # which Kubernetes itself defines
    jsonschema.validate(ray_job(), schema)
    PART.write_text(json.dumps({"$comment": SOURCE} | used(schema, [ray_job()]), indent=1) + "\n")


if __name__ == "__main__":
    main()
