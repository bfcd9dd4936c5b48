"""The manifests in docs/kubernetes and the Dockerfile, without a Kubernetes cluster and without docker.

Each manifest is validated against the schemas of KubeRay's CRDs, which tests/kuberay/make.py keeps in a compact form.
"""

import copy
import json
import re
import shlex
import sys
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from conftest import ROOT

import petseg
from petseg import cli
from petseg.config.evaluate import EvaluateConfig
from petseg.config.predict import PredictConfig
from petseg.config.train import TrainConfig

SCHEMAS = json.loads((ROOT / "tests" / "kuberay" / "schemas.json").read_text())
MANIFESTS = {
    path.stem: yaml.safe_load(path.read_text()) for path in sorted((ROOT / "docs" / "kubernetes").glob("*.yaml"))
}
JOBS = {"train": TrainConfig, "predict": PredictConfig, "evaluate": EvaluateConfig}
PAGE = (ROOT / "docs" / "clusters.md").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PIN = re.compile(r"'(\w+(?:\[[\w,]+\])?==[\d.]+)'")

HEAD = ("rayClusterSpec", "headGroupSpec", "template", "spec")
WORKER = ("rayClusterSpec", "workerGroupSpecs", 0)


def job_spec(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["spec"].get("jobTemplate", manifest["spec"])


def problems(manifest: dict[str, Any]) -> list[str]:
    """Return what KubeRay's schemas say against a manifest."""
    validator = jsonschema.Draft202012Validator(SCHEMAS | {"$ref": f"#/$defs/{manifest['kind']}"})
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest_fits_the_schemas_of_kuberay(name: str) -> None:
    assert problems(MANIFESTS[name]) == []
    assert MANIFESTS[name]["metadata"] == {"name": f"petseg-{name}"}


def test_manifests_kinds_and_jobs_are_those_promised() -> None:
    kinds = {name: manifest["kind"] for name, manifest in MANIFESTS.items()}
    assert kinds == dict.fromkeys(JOBS, "RayJob") | {"predict-nightly": "RayCronJob"}


@pytest.mark.parametrize(
    ("place", "key", "value", "message"),
    [
        ((), "backoffLimits", 2, "'backoffLimits' was unexpected"),
        ((), "backoffLimit", "2", "'2' is not of type 'integer'"),
        ((), "entrypoint", ["petseg", "train"], "is not of type 'string'"),
        (("rayClusterSpec",), "headGroupSpec", None, "None is not of type 'object'"),
        (("rayClusterSpec", "authOptions"), "mode", "tokens", "'tokens' is not one of"),
        (("rayClusterSpec", "headGroupSpec", "rayStartParams"), "num-cpus", 0, "0 is not of type 'string'"),
        (HEAD, "serviceAccount_name", "petseg", "'serviceAccount_name' was unexpected"),
        ((*HEAD, "containers", 0), "name", None, "None is not of type 'string'"),
        ((*HEAD, "containers", 0, "resources"), "limit", {"cpu": "2"}, "'limit' was unexpected"),
        ((*HEAD, "containers", 0, "resources", "limits"), "memory", "8 Gi", "'8 Gi' does not match"),
        (WORKER, "maxReplicas", "8", "'8' is not of type 'integer'"),
        (WORKER, "groupNames", "cpu", "'groupNames' was unexpected"),
    ],
)
@pytest.mark.parametrize("name", ["predict", "predict-nightly"])
def test_manifest_unknown_field_or_wrong_type_is_refused(
    name: str, place: tuple[str | int, ...], key: str, value: object, message: str
) -> None:
    manifest = copy.deepcopy(MANIFESTS[name])
    changed: Any = job_spec(manifest)
    for part in place:
        changed = changed[part]
    changed[key] = value
    [problem] = problems(manifest)
    assert message in problem


@pytest.mark.parametrize("field", ["apiVersion", "spec"])
def test_manifest_missing_field_is_refused(field: str) -> None:
    manifest = {key: value for key, value in MANIFESTS["train"].items() if key != field}
    assert problems(manifest) == [f"$: '{field}' is a required property"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest_entrypoint_is_accepted_by_the_job(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program, job, *flags = shlex.split(job_spec(MANIFESTS[name])["entrypoint"])
    assert program == "petseg" and name.startswith(job)
    monkeypatch.setattr(sys, "argv", ["petseg", *flags])
    assert isinstance(cli.parse(job, JOBS[job]), JOBS[job])


def test_manifest_nightly_is_the_prediction_with_what_is_new() -> None:
    nightly, once = (copy.deepcopy(job_spec(MANIFESTS[name])) for name in ("predict-nightly", "predict"))
    assert nightly.pop("entrypoint") == once.pop("entrypoint") + " --append --retry-errors"
    tries = 1 + nightly["backoffLimit"]
    assert tries * nightly.pop("activeDeadlineSeconds") < 24 * 3600 < tries * once.pop("activeDeadlineSeconds")
    assert nightly == once


def test_manifests_versions_are_the_installed_ones() -> None:
    tag = f"REGISTRY/petseg:{petseg.__version__}-ray{ray.__version__}"
    assert set(re.findall(r"REGISTRY/\S+", PAGE)) == {tag}
    for manifest in MANIFESTS.values():
        cluster = job_spec(manifest)["rayClusterSpec"]
        pods = [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]
        assert {container["image"] for pod in pods for container in pod["spec"]["containers"]} == {tag}
        assert cluster["rayVersion"] == ray.__version__


def test_manifests_have_the_same_head_and_workers() -> None:
    parts: dict[str, Any] = {}
    for manifest in MANIFESTS.values():
        cluster = copy.deepcopy(job_spec(manifest)["rayClusterSpec"])
        for group in cluster.pop("workerGroupSpecs"):
            assert group.pop("maxReplicas") > group["minReplicas"] == 0
            assert parts.setdefault(group["groupName"], group) == group
        assert parts.setdefault("head", cluster) == cluster


def test_dockerfile_versions_are_those_of_the_aws_cluster() -> None:
    [install] = [
        command
        for command in yaml.safe_load((ROOT / "cluster.yaml").read_text())["setup_commands"]
        if "pip install" in command
    ]
    assert PIN.findall(DOCKERFILE) == PIN.findall(install)


def test_dockerfile_user_is_a_number_other_than_root() -> None:
    # Kubernetes's runAsNonRoot accepts no names.
    assert int(re.findall(r"^USER (.+)$", DOCKERFILE, re.MULTILINE)[-1]) > 0


def test_dockerignore_sends_only_what_the_wheel_is_built_from() -> None:
    copied = {name for line in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()}
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in ignore if line and not line.startswith("#")]
    assert rules[0] == "*" and rules[-1] == "**/__pycache__"
    assert {rule.removeprefix("!") for rule in rules[1:-1]} == copied
    assert all((ROOT / name).exists() for name in copied)
