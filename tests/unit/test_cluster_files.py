"""cluster.yaml, cluster/ and requirements.lock: what reads them accepts them, and no secret or door stands open."""

from __future__ import annotations

import csv
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import mlflow.cli
import pytest
import yaml
from jsonschema import ValidationError
from packaging.utils import canonicalize_name
from ray.autoscaler._private.util import prepare_config, validate_config

from pipelines.metrics import METRICS

ROOT = Path(__file__).parents[2]
CLUSTERS = ("cluster.yaml", "cluster/on_premises.yaml")
MANIFESTS = ("raycluster.yaml", "rayjob.yaml", "services.yaml")


def read(file: str) -> Any:
    return yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))


def documents(manifest: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "cluster/kubernetes" / manifest).read_text(encoding="utf-8")))


def pods(tree: Any) -> list[dict[str, Any]]:
    """Every pod's specification in a tree: what holds containers."""
    if isinstance(tree, list):
        return [pod for each in tree for pod in pods(each)]
    if not isinstance(tree, dict):
        return []
    return [tree] if "containers" in tree else [pod for each in tree.values() for pod in pods(each)]


@pytest.mark.parametrize("file", CLUSTERS)
def test_rays_launcher_accepts(file: str) -> None:
    config = read(file)
    validate_config(prepare_config(config))
    with pytest.raises(ValidationError, match="max_wrkers"):
        validate_config(prepare_config({**config, "max_wrkers": 1}))


@pytest.mark.parametrize("file", CLUSTERS)
def test_every_node_of_the_launcher_has_the_token_and_the_image(file: str) -> None:
    config = read(file)
    options = config["docker"]["run_options"]
    assert "--env RAY_AUTH_MODE=token" in options
    assert "--env RAY_AUTH_TOKEN_PATH=/run/uml/auth_token" in options
    assert any(option.startswith("--volume") and ":ro" in option and "/run/uml" in option for option in options)
    assert not config.get("setup_commands"), "what nodes need is in the image"


def test_on_ec2_nodes_are_reached_from_inside_alone_and_hold_no_key() -> None:
    config = read("cluster.yaml")
    assert config["provider"]["use_internal_ips"]
    for node in config["available_node_types"].values():
        settings = node["node_config"]
        assert settings["IamInstanceProfile"]["Name"] in ("UML_HEAD", "UML_NODE")
        assert settings["SecurityGroupIds"], "without one Ray makes a group that is open to ssh from everywhere"
        assert settings["MetadataOptions"]["HttpTokens"] == "required"
        assert settings["ImageId"].startswith("ami-"), "without one Ray takes an image of Ubuntu 18.04"
        assert all(disk["Ebs"]["Encrypted"] for disk in settings["BlockDeviceMappings"])
    assert config["available_node_types"]["gpu_spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in config["available_node_types"]["gpu"]["node_config"]


def test_beside_the_head_on_ec2_mlflow_serves_every_node() -> None:
    config = read("cluster.yaml")
    (line,) = [line for line in config["head_start_ray_commands"] if "mlflow server" in line]
    flags = shlex.split(line.rpartition("mlflow server")[2].partition(">")[0])
    settings = mlflow.cli.server.make_context("server", flags, resilient_parsing=False).params
    assert (settings["host"], settings["port"]) == ("0.0.0.0", 5000)
    assert settings["artifacts_destination"] == "$UML_ROOT/mlflow"
    for commands, address in (("head", "$(hostname"), ("worker", "$RAY_HEAD_IP:5000 ")):
        starts = [line for line in config[f"{commands}_start_ray_commands"] if "ray start" in line]
        assert all(line.startswith(f"MLFLOW_TRACKING_URI=http://{address}") for line in starts), starts
    for line in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        assert subprocess.run(["bash", "-n", "-c", line], capture_output=True, check=False).returncode == 0, line


def test_kubernetes_accepts_the_services() -> None:
    for document in documents("services.yaml"):
        kubernetes_validate.validate(document, "1.37", strict=True)
    broken = documents("services.yaml")[1] | {"replcas": 1}
    with pytest.raises(kubernetes_validate.ValidationError, match="replcas"):
        kubernetes_validate.validate(broken, "1.37", strict=True)


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_every_pod_is_valid_unprivileged_pinned_and_bounded(manifest: str) -> None:
    found = [pod for document in documents(manifest) for pod in pods(document)]
    assert found
    for pod in found:
        template = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod}
        kubernetes_validate.validate(template, "1.37", strict=True)
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] >= 999
        for container in pod["containers"]:
            assert re.search(r":[\w.-]*\d[\w.-]*$", container["image"]), container["image"]
            assert "memory" in container["resources"]["limits"]
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_ray_cluster_asks_for_its_token_and_is_not_open_to_others() -> None:
    (cluster,) = documents("raycluster.yaml")
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    assert cluster["spec"]["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert all(document["spec"].get("type", "ClusterIP") == "ClusterIP" for document in documents("services.yaml"))
    accounts = [pod["automountServiceAccountToken"] for pod in pods(cluster)]
    assert accounts == [True, False, False], "the autoscaler beside the head alone speaks to Kubernetes"


@pytest.mark.parametrize("file", [*CLUSTERS, *(f"cluster/kubernetes/{manifest}" for manifest in MANIFESTS)])
def test_no_secret_stands_in_a_file(file: str) -> None:
    for name, value in re.findall(
        r"name: (\w*(?:PASSWORD|SECRET|TOKEN|KEY|USER)\w*), value: (\S+)\}", (ROOT / file).read_text()
    ):
        assert (name, value) == ("POSTGRES_USER", "mlflow")


def test_the_image_is_pinned_unprivileged_and_holds_no_secret() -> None:
    lines = (ROOT / "cluster/Dockerfile").read_text(encoding="utf-8").splitlines()
    instructions = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    stages = [text.rpartition(" AS ")[2] for name, text in instructions if name == "FROM"]
    assert stages == ["build", "cpu", "server", "cuda"]
    bases = [text.split()[0] for name, text in instructions if name == "FROM"]
    assert all(re.search(r":\d+\.\d+\.\d+", base) or base in stages for base in bases)
    assert [text for name, text in instructions if name == "USER"][-1] == "uml"
    assert not [name for name, _ in instructions if name == "ADD"]
    assert all(
        "--require-hashes" in text or "--no-deps ." in text
        for name, text in instructions
        if name == "RUN" and "pip install" in text
    )
    assert not re.search(r"(?i)(ENV|ARG)\s.*(password|secret|token\s*=|key\s*=)", "\n".join(lines))
    copied = [text.split()[:-1] for name, text in instructions if name == "COPY" and not text.startswith("--from")]
    allowed = (ROOT / "cluster/Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    for path in (path for paths in copied for path in paths):
        assert (ROOT / path).exists()
        assert f"!{path}" in allowed


def pins(file: str) -> dict[str, str]:
    found = re.findall(r"^([\w.-]+)(?:\[[\w,]+\])?==([\w.]+)", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def test_the_lock_has_every_pin_of_the_requirements_with_hashes() -> None:
    locked = pins("requirements.lock")
    assert pins("requirements.txt").items() <= locked.items()
    entries = re.split(r"\n(?=\w)", (ROOT / "requirements.lock").read_text(encoding="utf-8").rstrip())[1:]
    assert len(entries) == len(locked)
    assert all("--hash=sha256:" in entry for entry in entries)


def test_the_licence_list_is_that_of_the_lock_and_what_binds_is_named() -> None:
    with (ROOT / "requirements.licences.csv").open(encoding="utf-8", newline="") as file:
        packages = list(csv.DictReader(file))
    listed = {canonicalize_name(each["Name"]): each["Version"] for each in packages}
    assert listed.keys() == pins("requirements.lock").keys()
    assert pins("requirements.txt").items() <= listed.items()
    page = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    licences = page[page.index("## Licences") :]
    binding = re.compile(r"GPL|MPL|Mozilla|-SA-|UNKNOWN|Proprietary")
    named = {each["Name"] for each in packages if binding.search(each["License"]) and "nvidia" not in each["Name"]}
    assert set(re.findall(r"`([\w-]+)`", licences)) == named


def test_the_dashboard_draws_every_metric_and_no_other() -> None:
    dashboard = json.loads((ROOT / "cluster/grafana/uml.json").read_text(encoding="utf-8"))
    panels, exported = dashboard["panels"], {exported_name(name): tags for name, (_, _, tags) in METRICS.items()}
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    assert set(re.findall(r"\bray_\w+", " ".join(expressions))) == exported.keys()
    for expression in expressions:
        tags = {tag for name in re.findall(r"\bray_\w+", expression) for tag in exported[name]}
        used = re.findall(r"(\w+)=", expression) + re.findall(r"\w+", " ".join(re.findall(r"by \((.*?)\)", expression)))
        assert set(used) <= {"experiment", "step", *tags}, expression
    assert len({panel["id"] for panel in panels}) == len(panels)


def exported_name(name: str) -> str:
    return f"ray_{name}_total" if METRICS[name][0] == "Counter" else f"ray_{name}"
