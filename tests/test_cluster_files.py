"""The files of docs/cluster: valid, in step with each other and with what the project takes."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest
import yaml
from kuberay_schema import EXAMPLE, PART, ray_job

from configs.loading import parse_flags

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "cluster"
SECRET = {"auth_token", "password"}  # keys, as the first lines of kuberay.yaml make it


def objects(*files: str) -> list[Any]:
    return [part for file in files for part in yaml.safe_load_all((FOLDER / file).read_text())]


def values(tree: Any, key: str) -> list[Any]:
    """Return what stands under a key anywhere in a tree."""
    if isinstance(tree, list):
        return [found for item in tree for found in values(item, key)]
    if not isinstance(tree, dict):
        return []
    return [found for name, item in tree.items() for found in ([item] if name == key else values(item, key))]


def test_the_ray_job_follows_the_published_schema_which_knows_no_other_fields() -> None:
    schema = yaml.safe_load(PART.read_text())
    jsonschema.validate(ray_job(), schema)
    misspelt = ray_job()
    misspelt["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 8
    with pytest.raises(jsonschema.ValidationError, match="'maxReplica' was unexpected"):
        jsonschema.validate(misspelt, schema)


def test_the_searches_of_the_ray_job_are_understood() -> None:
    (script,) = values(objects("kuberay.yaml"), "run.sh")
    script = script.replace("\\\n", " ").replace("$run", "/runs/first")
    resumed, first = [shlex.split(line) for line in script.splitlines() if "python -m search" in line]
    assert resumed[4:] == ["--resume", "/runs/first"]
    config = parse_flags(first[4:])
    assert config.out == "/runs/first"
    (servers,) = [part["metadata"]["name"] for part in objects("servers.yaml") if part["kind"] == "Service"]
    assert {urlsplit(config.storage).hostname, urlsplit(config.tracking_uri).hostname} == {servers}


def test_names_in_the_files_for_kubernetes_agree() -> None:
    parts = objects("kuberay.yaml", "servers.yaml")
    named = {(part["kind"], part["metadata"]["name"]) for part in parts}
    assert {("ConfigMap", reference["name"]) for reference in values(parts, "configMap")} <= named
    claims = {("PersistentVolumeClaim", reference["claimName"]) for reference in values(parts, "persistentVolumeClaim")}
    assert claims <= named
    secret = re.search(r"create secret generic (\w+)", EXAMPLE.read_text())
    assert secret
    references = values(parts, "secretKeyRef")
    assert {reference["name"] for reference in references} == {secret[1]}
    assert {reference["key"] for reference in references} <= SECRET
    assert SECRET == set(re.findall(r"--from-literal=(\w+)", EXAMPLE.read_text()))
    for part in [*parts, *values(parts, "headGroupSpec")]:
        pod = part.get("spec", part).get("template", {}).get("spec", {})
        mounted = {mount["name"] for mounts in values(pod, "volumeMounts") for mount in mounts}
        made = {volume["name"] for volume in pod.get("volumes", [])}
        made |= {claim["metadata"]["name"] for claim in part.get("spec", {}).get("volumeClaimTemplates", [])}
        assert mounted <= made


def test_the_version_of_ray_is_the_one_that_was_tested() -> None:
    (version,) = re.findall(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert ray_job()["spec"]["rayClusterSpec"]["rayVersion"] == version
    assert f"FROM rayproject/ray:{version}-py311\n" in (FOLDER / "Dockerfile").read_text()


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_the_scripts_are_sound() -> None:
    (script,) = values(objects("kuberay.yaml"), "run.sh")
    subprocess.run(["shellcheck", str(FOLDER / "slurm.sh")], check=True)
    subprocess.run(["shellcheck", "--shell=bash", "-"], input=script.encode(), check=True)
