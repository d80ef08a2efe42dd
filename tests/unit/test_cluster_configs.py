"""The files under cluster_configs: what each must be for the program that reads it, and what it must not allow.

No cluster is asked. Ray's own schema, EC2's API model and KubeRay's resource definitions stand in for them.
"""

import copy
import json
import os
import re
import shlex
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from s2l_ray.cli import _parser
from s2l_ray.config import MARKET_LABEL
from s2l_ray.experiment import load_experiment

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "cluster_configs"
FILES = sorted(path for path in CONFIGS.rglob("*") if path.is_file())
KUBERAY = sorted((CONFIGS / "kuberay").glob("*.yaml"))
RAY_UP = [CONFIGS / name for name in ("aws.yaml", "aws-spot.yaml", "gcp.yaml", "gcp-spot.yaml")]
AWS, GCP = RAY_UP[:2], RAY_UP[2:]
SPOT_SECONDS = 60
"""Shortest grace of a pod on a spot node that leaves Ray time to drain it [s]."""

Mapping = dict[str, Any]


def name_of(path: Path) -> str:
    return path.relative_to(CONFIGS).as_posix()


def documents(path: Path) -> list[Mapping]:
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


def prepared(path: Path) -> Mapping:
    """Return a `ray up` file with Ray's defaults filled in, as `ray up` sees it."""
    from ray.autoscaler._private.util import prepare_config

    return prepare_config(yaml.safe_load(path.read_text(encoding="utf-8")))


def node_configs(path: Path) -> Iterator[tuple[str, Mapping]]:
    for name, node_type in yaml.safe_load(path.read_text(encoding="utf-8"))["available_node_types"].items():
        yield name, node_type["node_config"]


# -------------------------------------------------------------------------------------------------------- every file


def test_all_kinds_of_files_are_there():
    names = {name_of(path) for path in FILES}
    assert {"README.md", "Dockerfile", "runtime_env.yaml", "slurm.sh", *(path.name for path in RAY_UP)} <= names
    assert {f"kuberay/{kind}.yaml" for kind in ("raycluster", "rayjob", "rayjob-kueue", "networkpolicy")} <= names


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_file_parses_has_a_header_and_no_template(path):
    text = path.read_text(encoding="utf-8")
    assert "{{" not in text
    if path.suffix == ".json":
        assert json.loads(text)["description"]
    elif path.suffix == ".yaml":
        assert documents(path)
        assert text.startswith("# ")
    elif path.suffix == ".sh":
        assert text.splitlines()[1].startswith("# ")
        subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_file_names_workflows_that_exist(path):
    for name in re.findall(r"workflows/[\w.-]+\.yaml", path.read_text(encoding="utf-8")):
        if not name.startswith("workflows/my"):
            assert (ROOT / name).is_file(), name


def test_some_files_do_name_workflows():
    assert sum("workflows/quickstart.yaml" in path.read_text(encoding="utf-8") for path in FILES) >= 5


SECRET = re.compile(r"AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY|\b[0-9a-f]{32,}\b|hf_[A-Za-z0-9]{20,}|gh[ps]_\w{20,}")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_file_holds_no_secret(path):
    assert not SECRET.search(path.read_text(encoding="utf-8"))
    if path.suffix == ".yaml":
        assert not [document for document in documents(path) if document.get("kind") == "Secret"]


@pytest.mark.parametrize("secret", ["AKIA" + "A" * 16, "auth_token: " + "0a" * 32, "hf_" + "x" * 30])
def test_secret_would_be_found(secret):
    assert SECRET.search(f"token: {secret}\n")


def commands_in(text: str) -> Iterator[list[str]]:
    """Yield what follows `python -m s2l_ray` in comments, entry points and README, as the shell would split it."""
    joined = re.sub(r"\\\n[# ]*", " ", text)
    for found in re.finditer(r"python -m s2l_ray ((?:run|plan|sweep) [^\n#`]*)", joined):
        yield shlex.split(found.group(1))


@pytest.mark.parametrize("path", [p for p in FILES if p.suffix != ".sh"], ids=name_of)
def test_commands_in_file_are_ones_that_the_command_line_takes(path):
    texts = [path.read_text(encoding="utf-8")]
    if path.parent.name == "kuberay":
        texts += [str(document.get("spec", {}).get("entrypoint", "")) for document in documents(path)]
    for command in (command for text in texts for command in commands_in(text)):
        arguments = _parser().parse_args(command)
        workflow = ROOT / "workflows" / Path(arguments.config).name
        if workflow.name.startswith("my"):
            continue
        load_experiment(workflow, [*arguments.set, f"storage={arguments.storage or '.s2l'}"])


def test_overrides_shown_in_comments_are_ones_that_the_config_takes():
    lines = [line for path in FILES for line in re.findall(r"--set '([^'\n]+)'", path.read_text(encoding="utf-8"))]
    assert any("market: spot" in line for line in lines)
    for line in lines:
        load_experiment(ROOT / "workflows/quickstart.yaml", [line])


# ----------------------------------------------------------------------------------------------------- Ray's version


def versions_named() -> dict[str, set[str]]:
    """Return the Ray versions that each file names, however it names them."""
    patterns = (
        r"rayproject/ray:(\d+\.\d+\.\d+)",
        r"s2l-ray:ray(\d+\.\d+\.\d+)",
        r"rayVersion: \"?(\d+\.\d+\.\d+)",
        r"RAY_VERSION=(\d+\.\d+\.\d+)",
        r"ray(?:\[[^\]]*\])?==(\d+\.\d+\.\d+)",
        r"same version, (\d+\.\d+\.\d+)",
    )
    found = {
        name_of(path): {v for pattern in patterns for v in re.findall(pattern, path.read_text(encoding="utf-8"))}
        for path in FILES
    }
    return {name: versions for name, versions in found.items() if versions}


def test_ray_version_is_the_same_everywhere_and_one_that_the_project_takes():
    from packaging.requirements import Requirement

    named = versions_named()
    assert {"Dockerfile", "runtime_env.yaml", "README.md", *(p.name for p in RAY_UP)} <= set(named)
    assert {f"kuberay/{kind}.yaml" for kind in ("raycluster", "rayjob", "rayjob-kueue")} <= set(named)
    assert len(set().union(*named.values())) == 1, named
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = next(r for r in map(Requirement, project["dependencies"]) if r.name == "ray")
    assert wanted.specifier.contains(next(iter(named["Dockerfile"])))


def test_every_image_is_one_that_the_dockerfile_starts_from_or_makes():
    for path in [*KUBERAY, *RAY_UP]:
        for image in re.findall(r"(?:image|worker_image): \"?([^\s\"}]+)", path.read_text(encoding="utf-8")):
            assert re.fullmatch(r"(s2l-ray:ray|rayproject/ray:)[\d.]+(-py311)?-(cpu|gpu)", image), image


def test_every_container_of_a_pod_that_asks_for_a_gpu_has_the_image_for_it():
    for _, _, spec in pods():
        for container in spec["containers"]:
            wants = "nvidia.com/gpu" in container["resources"]["limits"]
            assert container["image"].endswith("-gpu" if wants else "-cpu")


# ---------------------------------------------------------------------------------------------------------- `ray up`


@pytest.mark.parametrize("path", RAY_UP, ids=name_of)
def test_ray_up_takes_the_file(path):
    from ray.autoscaler._private.util import validate_config

    config = prepared(path)
    validate_config(config)
    types = config["available_node_types"]
    assert len(types) >= 4
    assert types[config["head_node_type"]]["resources"]["CPU"] == 0
    assert any(each["resources"].get("GPU") for each in types.values())
    kept = [each["resources"] for each in types.values() if each["min_workers"]]
    assert kept == [{"CPU": 8}], "one node to begin with, and no GPU that idles"


@pytest.mark.parametrize("path", RAY_UP, ids=name_of)
def test_ray_up_refuses_the_file_with_a_misspelt_key(path):
    import jsonschema
    from ray.autoscaler._private.util import validate_config

    config = prepared(path)
    config["idle_timeout_minute"] = config.pop("idle_timeout_minutes")
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minute"):
        validate_config(config)


@pytest.mark.parametrize("path", RAY_UP, ids=name_of)
def test_ray_up_guards_the_cluster_with_a_token_and_keeps_the_dashboard_on_loopback(path):
    config = prepared(path)
    options = " ".join(config["docker"]["run_options"])
    assert "--env RAY_AUTH_MODE=token" in options
    folder = str(Path(re.search(r"RAY_AUTH_TOKEN_PATH=(\S+)", options).group(1)).parent)  # type: ignore[union-attr]
    assert folder in config["file_mounts"]
    start = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in start
    assert "0.0.0.0" not in yaml.safe_dump(config)
    assert "--num-cpus=0" in start


@pytest.mark.parametrize("path", RAY_UP, ids=name_of)
def test_ray_up_labels_what_may_be_taken_away(path):
    config = prepared(path)
    for name, node_type in config["available_node_types"].items():
        node = node_type["node_config"]
        is_spot = "InstanceMarketOptions" in node or node.get("scheduling", {}).get("provisioningModel") == "SPOT"
        assert is_spot == ("spot" in name)
        if name == config["head_node_type"]:
            assert not is_spot
        else:
            assert node_type["labels"] == {MARKET_LABEL: "spot" if is_spot else "on-demand"}


@pytest.fixture(scope="module")
def run_instances() -> Callable[[Mapping], str]:
    """Return a function that says what is wrong with a node's config by EC2's API model, as boto would."""
    import botocore.session
    from botocore.validate import ParamValidator

    model = botocore.session.Session().get_service_model("ec2").operation_model("RunInstances").input_shape

    def report(node: Mapping) -> str:
        # What Ray itself adds or replaces before the call.
        node = {key: value for key, value in node.items() if key != "SubnetIds"}
        return str(ParamValidator().validate({**node, "MinCount": 1, "MaxCount": 1}, model).generate_report())

    return report


@pytest.mark.parametrize("path", AWS, ids=name_of)
def test_ec2_takes_every_node_config(path, run_instances):
    for name, node in node_configs(path):
        assert run_instances(node) == "", name
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert all(disk["Ebs"]["Encrypted"] for disk in node["BlockDeviceMappings"])
        assert node["SecurityGroupIds"]
        assert node["IamInstanceProfile"]


@pytest.mark.parametrize(
    ("dotted", "key"),
    [((), "InstanceTypo"), (("MetadataOptions",), "HttpToken"), (("BlockDeviceMappings", 0, "Ebs"), "VolumeSise")],
)
def test_ec2_refuses_a_misspelt_key(dotted, key, run_instances):
    node = copy.deepcopy(dict(node_configs(AWS[0]))["gpu"])
    place: Any = node
    for step in dotted:
        place = place[step]
    place[key] = "x"
    assert "Unknown parameter" in run_instances(node)


COMPUTE: Mapping = {
    "machineType": str,
    "minCpuPlatform": str,
    "labels": {},
    "disks": [
        {
            "boot": bool,
            "autoDelete": bool,
            "type": ("PERSISTENT", "SCRATCH"),
            "deviceName": str,
            "initializeParams": {"diskSizeGb": int, "diskType": str, "sourceImage": str},
        }
    ],
    "networkInterfaces": [
        {"network": str, "subnetwork": str, "nicType": str, "accessConfigs": [{"name": str, "type": str}]}
    ],
    "serviceAccounts": [{"email": str, "scopes": [str]}],
    "scheduling": {
        "provisioningModel": ("FLEX_START", "RESERVATION_BOUND", "SPOT", "STANDARD"),
        "instanceTerminationAction": ("DELETE", "STOP"),
        "onHostMaintenance": ("MIGRATE", "TERMINATE"),
        "automaticRestart": bool,
        "preemptible": bool,
    },
    "guestAccelerators": [{"acceleratorType": str, "acceleratorCount": int}],
    "metadata": {"items": [{"key": str, "value": str}]},
    "shieldedInstanceConfig": {"enableSecureBoot": bool, "enableVtpm": bool, "enableIntegrityMonitoring": bool},
    "tags": {"items": [str]},
}
"""What of the Compute API's resource Instance (v1) a node config may use. A tuple holds the values of an enum."""


def compute_faults(value: Any, shape: Any, where: str = "node_config") -> Iterator[str]:
    """Yield where a value is not what COMPUTE allows."""
    if isinstance(shape, tuple):
        if value not in shape:
            yield f"{where}: {value!r} is none of {shape}"
    elif isinstance(shape, type):
        if type(value) is not shape:
            yield f"{where}: {value!r} is not {shape.__name__}"
    elif isinstance(shape, list):
        if not isinstance(value, list):
            yield f"{where}: not a list"
            return
        for index, item in enumerate(value):
            yield from compute_faults(item, shape[0], f"{where}[{index}]")
    elif not isinstance(value, dict):
        yield f"{where}: not a mapping"
    else:
        for key, item in value.items():
            if not shape or key in shape:
                yield from compute_faults(item, shape.get(key, str), f"{where}.{key}")
            else:
                yield f"{where}.{key}: unknown"


@pytest.mark.parametrize("path", GCP, ids=name_of)
def test_compute_api_takes_every_node_config(path):
    for name, node in node_configs(path):
        assert list(compute_faults(node, COMPUTE)) == [], name
        if node["machineType"].startswith("g2-"):
            assert node["scheduling"]["onHostMaintenance"] == "TERMINATE", "a machine with a GPU cannot be moved"


@pytest.mark.parametrize(
    "change",
    [{"machinetype": "x"}, {"scheduling": [{"preemptible": True}]}, {"scheduling": {"provisioningModel": "spot"}}],
)
def test_compute_api_refuses_what_it_does_not_know(change):
    node = {**dict(node_configs(GCP[0]))["gpu"], **change}
    assert list(compute_faults(node, COMPUTE))


# ----------------------------------------------------------------------------------------------------------- KubeRay


def strict(schema: Any) -> Any:
    """Return a schema in which every object with named properties takes no others, unless it says that it does."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    has_names = made.get("type") == "object" and isinstance(made.get("properties"), dict)
    if has_names and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    if made.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    return made


@pytest.fixture(scope="module")
def schemas() -> dict[str, Mapping]:
    """Return the strict schema of each kind that KubeRay defines."""
    folder = os.environ.get("S2L_TEST_SCHEMAS")
    if not folder:
        pytest.skip("S2L_TEST_SCHEMAS is not set: it names a folder with KubeRay's CustomResourceDefinitions")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found = {}
    for path in sorted(Path(folder).glob("*.yaml")):
        spec = next(d for d in yaml.load_all(path.read_text(encoding="utf-8"), loader) if d)["spec"]
        version = next(v for v in spec["versions"] if v["name"] == "v1")
        found[spec["names"]["kind"]] = strict(version["schema"]["openAPIV3Schema"])
    return found


def of_kuberay() -> list[tuple[str, Mapping]]:
    return [(name_of(p), d) for p in KUBERAY for d in documents(p) if d["apiVersion"].startswith("ray.io/")]


@pytest.mark.parametrize(("name", "document"), of_kuberay(), ids=[name for name, _ in of_kuberay()])
def test_kuberay_takes_the_file_to_the_last_key(name, document, schemas):
    import jsonschema

    jsonschema.Draft202012Validator(schemas[document["kind"]]).validate(document)
    assert document["apiVersion"] == "ray.io/v1"


@pytest.mark.parametrize(
    "dotted",
    [
        ("spec", "enableInTreeAutoscalin"),
        ("spec", "workerGroupSpecs", 1, "minReplica"),
        ("spec", "workerGroupSpecs", 2, "template", "spec", "terminationGracePeriodSecond"),
        ("spec", "headGroupSpec", "template", "spec", "containers", 0, "securityContext", "allowPrivilegeEscalatio"),
        ("spec", "headGroupSpec", "template", "spec", "containers", 0, "env", 1, "valueFrom", "secretKeyRef", "nam"),
    ],
    ids=lambda dotted: str(dotted[-1]),
)
def test_kuberay_refuses_a_misspelt_key_however_deep(dotted, schemas):
    import jsonschema

    document = copy.deepcopy(dict(of_kuberay())["kuberay/raycluster.yaml"])
    place: Any = document
    for step in dotted[:-1]:
        place = place[step]
    place[dotted[-1]] = "x"
    with pytest.raises(jsonschema.ValidationError, match=dotted[-1]):
        jsonschema.Draft202012Validator(schemas["RayCluster"]).validate(document)


def clusters() -> Iterator[tuple[str, Mapping]]:
    for name, document in of_kuberay():
        yield name, document["spec"].get("rayClusterSpec", document["spec"])


@pytest.mark.parametrize(("name", "cluster"), list(clusters()), ids=[name for name, _ in clusters()])
def test_cluster_is_guarded_reached_inside_only_and_keeps_its_head_free_of_work(name, cluster):
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert not cluster["headGroupSpec"].get("enableIngress")
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    if cluster.get("enableInTreeAutoscaling"):
        assert cluster["autoscalerOptions"]["version"] == "v2"
        assert {"cpu", "gpu", "gpu-spot"} == {group["groupName"] for group in cluster["workerGroupSpecs"]}


def test_kueue_gets_a_job_that_it_can_admit():
    document = dict(of_kuberay())["kuberay/rayjob-kueue.yaml"]
    assert document["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    assert document["spec"]["suspend"] is True
    assert document["spec"]["shutdownAfterJobFinishes"] is True
    cluster = document["spec"]["rayClusterSpec"]
    assert not cluster.get("enableInTreeAutoscaling")
    assert all(g["replicas"] == g["minReplicas"] == g["maxReplicas"] for g in cluster["workerGroupSpecs"])
    assert len(cluster["workerGroupSpecs"]) <= 7


def test_kueue_job_asks_for_no_more_than_its_nodes_have():
    document = dict(of_kuberay())["kuberay/rayjob-kueue.yaml"]
    limits = [
        {kind: int(amount) for kind, amount in c["resources"]["limits"].items() if kind in ("cpu", "nvidia.com/gpu")}
        for group in document["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        for c in group["template"]["spec"]["containers"]
        for _ in range(group["replicas"])
    ]
    arguments = _parser().parse_args(next(commands_in(document["spec"]["entrypoint"])))
    workflow = ROOT / "workflows" / Path(arguments.config).name
    for config in load_experiment(workflow, [*arguments.set]).arms.values():
        for stage in ("train_proxy", "score_examples", "finetune_target", "evaluate_target"):
            demand = config.resources.of(stage)
            assert demand is not None
            fits = sum(
                min(int(n["cpu"] // demand.cpus), int(n.get("nvidia.com/gpu", 0) // demand.gpus)) for n in limits
            )
            assert fits >= demand.count, stage


# ------------------------------------------------------------------------------------------------- policy of every pod


def pods() -> list[tuple[str, Mapping, Mapping]]:
    """Return the name, template and spec of every pod that a file makes, the autoscaler counted to the head."""
    found = []
    for name, document in of_kuberay():
        cluster = document["spec"].get("rayClusterSpec", document["spec"])
        templates = {"head": cluster["headGroupSpec"]["template"]}
        templates |= {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
        if document["kind"] == "RayJob":
            templates["submitter"] = document["spec"]["submitterPodTemplate"]
        for group, template in templates.items():
            spec = copy.deepcopy(template["spec"])
            if group == "head" and "autoscalerOptions" in cluster:
                image = spec["containers"][0]["image"]
                spec["containers"].append({"name": "autoscaler", "image": image, **cluster["autoscalerOptions"]})
            found.append((f"{name}:{group}", template, spec))
    return found


def runs_on_spot(spec: Mapping) -> bool:
    affinity = (
        spec.get("affinity", {}).get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution", {})
    )
    expressions = [e for term in affinity.get("nodeSelectorTerms", []) for e in term["matchExpressions"]]
    return any(e["operator"] == "In" and {"true", "SPOT", "spot"} & set(e["values"]) for e in expressions)


def violations(spec: Mapping) -> set[str]:
    """Return the rules that a pod breaks."""
    broken = set()
    whole = spec.get("securityContext", {})

    def check(rule: str, holds: bool) -> None:
        if not holds:
            broken.add(rule)

    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        own = container.get("securityContext", {})
        check("runAsNonRoot", own.get("runAsNonRoot", whole.get("runAsNonRoot")) is True)
        check("runAsUser", own.get("runAsUser", whole.get("runAsUser", 0)) > 0)
        check("seccompProfile", own.get("seccompProfile", whole.get("seccompProfile")) == {"type": "RuntimeDefault"})
        check("allowPrivilegeEscalation", own.get("allowPrivilegeEscalation") is False)
        check("capabilities", own.get("capabilities") == {"drop": ["ALL"]})
        check("privileged", not own.get("privileged"))
        resources = container.get("resources", {})
        for kind in ("requests", "limits"):
            check(kind, {"cpu", "memory"} <= set(resources.get(kind, {})))
        env = {each["name"]: each for each in container.get("env", [])}
        check("token mode", env.get("RAY_AUTH_MODE", {}).get("value") == "token")
        check("token from a Secret", "secretKeyRef" in env.get("RAY_AUTH_TOKEN", {}).get("valueFrom", {}))
        for name, each in env.items():
            named_secret = re.search(r"TOKEN|KEY|SECRET|PASSWORD", name)
            check("no secret in the file", not (named_secret and "value" in each))
    check("host", not any(spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")))
    check("hostPath", not any("hostPath" in volume for volume in spec.get("volumes", [])))
    check("restartPolicy", spec.get("restartPolicy") == "Never")
    check("grace", not runs_on_spot(spec) or spec.get("terminationGracePeriodSeconds", 30) >= SPOT_SECONDS)
    return broken


PODS = pods()


@pytest.mark.parametrize(("name", "template", "spec"), PODS, ids=[name for name, _, _ in PODS])
def test_pod_breaks_no_rule(name, template, spec):
    assert violations(spec) == set()
    assert template["metadata"]["labels"]["app.kubernetes.io/part-of"] == "s2l-ray"
    is_head = name.endswith(":head")
    assert is_head or spec["automountServiceAccountToken"] is False


@pytest.mark.parametrize(("name", "template", "spec"), PODS, ids=[name for name, _, _ in PODS])
def test_node_has_shared_memory_that_is_memory_and_fits_its_container(name, template, spec):
    if name.endswith(":submitter"):
        return
    volumes = {v["name"]: v["emptyDir"] for v in spec["volumes"] if "emptyDir" in v}
    container = spec["containers"][0]
    shared = next(mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == "/dev/shm")
    assert volumes[shared]["medium"] == "Memory"
    size, limit = (int(text.removesuffix("Gi")) for text in (volumes[shared]["sizeLimit"], memory_of(container)))
    assert 2 <= size <= limit / 2


def memory_of(container: Mapping) -> str:
    return str(container["resources"]["limits"]["memory"])


def spot_pod() -> Mapping:
    return copy.deepcopy(next(spec for name, _, spec in PODS if name == "kuberay/raycluster.yaml:gpu-spot"))


BROKEN: dict[str, Callable[[Mapping], Any]] = {
    "runAsNonRoot": lambda pod: [pod["securityContext"].pop("runAsNonRoot"), own(pod).pop("runAsNonRoot")],
    "runAsUser": lambda pod: pod["securityContext"].update(runAsUser=0),
    "seccompProfile": lambda pod: own(pod).update(seccompProfile={"type": "Unconfined"}),
    "allowPrivilegeEscalation": lambda pod: own(pod).pop("allowPrivilegeEscalation"),
    "capabilities": lambda pod: own(pod).update(capabilities={"drop": ["ALL"], "add": ["SYS_PTRACE"]}),
    "privileged": lambda pod: own(pod).update(privileged=True),
    "requests": lambda pod: pod["containers"][0]["resources"].pop("requests"),
    "limits": lambda pod: pod["containers"][0]["resources"]["limits"].pop("memory"),
    "token mode": lambda pod: pod["containers"][0]["env"][0].update(value="disabled"),
    "token from a Secret": lambda pod: pod["containers"][0]["env"].pop(1),
    "no secret in the file": lambda pod: pod["containers"][0]["env"].append({"name": "HF_TOKEN", "value": "hf"}),
    "host": lambda pod: pod.update(hostNetwork=True),
    "hostPath": lambda pod: pod["volumes"].append({"name": "root", "hostPath": {"path": "/"}}),
    "restartPolicy": lambda pod: pod.update(restartPolicy="Always"),
    "grace": lambda pod: pod.pop("terminationGracePeriodSeconds"),
}


def own(pod: Mapping) -> Mapping:
    context: Mapping = pod["containers"][0]["securityContext"]
    return context


@pytest.mark.parametrize("rule", BROKEN)
def test_pod_that_breaks_a_rule_is_found(rule):
    pod = spot_pod()
    assert runs_on_spot(pod)
    BROKEN[rule](pod)
    assert violations(pod) == {rule}


def test_group_says_of_its_nodes_what_its_affinity_asks_for():
    for _, cluster in clusters():
        for group in cluster["workerGroupSpecs"]:
            is_spot = runs_on_spot(group["template"]["spec"])
            assert is_spot == ("spot" in group["groupName"])
            assert group["labels"] == {MARKET_LABEL: "spot" if is_spot else "on-demand"}


def by_kind(kind: str) -> list[Mapping]:
    return [document for path in KUBERAY for document in documents(path) if document["kind"] == kind]


def test_network_policy_covers_every_pod_and_lets_nobody_in_from_outside():
    (policy,) = by_kind("NetworkPolicy")
    assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    selected = policy["spec"]["podSelector"]["matchLabels"]
    for _, template, _ in PODS:
        assert selected.items() <= template["metadata"]["labels"].items()
    for rule in policy["spec"]["ingress"]:
        assert rule["from"], "an empty `from` lets everybody in"
        assert all(set(peer) & {"podSelector", "namespaceSelector"} and "ipBlock" not in peer for peer in rule["from"])
    out = [peer["ipBlock"] for rule in policy["spec"]["egress"] for peer in rule["to"] if "ipBlock" in peer]
    assert all("169.254.0.0/16" in block.get("except", []) for block in out)


def test_disruption_budget_guards_the_head_of_every_file():
    guarded = [budget["spec"] for budget in by_kind("PodDisruptionBudget")]
    assert all(spec["minAvailable"] == 1 for spec in guarded)
    wanted = {template["metadata"]["labels"]["app.kubernetes.io/instance"] for _, template, _ in PODS}
    assert {spec["selector"]["matchLabels"]["app.kubernetes.io/instance"] for spec in guarded} == wanted
    assert {spec["selector"]["matchLabels"]["ray.io/node-type"] for spec in guarded} == {"head"}


def test_namespace_refuses_pods_that_break_the_rules_and_has_the_identities_that_pods_name():
    (namespace,) = by_kind("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    accounts = {account["metadata"]["name"] for account in by_kind("ServiceAccount")}
    assert {spec["serviceAccountName"] for _, _, spec in PODS if "serviceAccountName" in spec} == accounts
    for path in KUBERAY:
        for document in documents(path):
            assert document["metadata"].get("namespace", "s2l") == "s2l"


# --------------------------------------------------------------------------------------- Dockerfile, runtime_env, Slurm


def dockerfile() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", (CONFIGS / "Dockerfile").read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def test_dockerfile_ends_as_a_numbered_user_other_than_root():
    users = [rest for word, rest in dockerfile() if word == "USER"]
    assert users
    assert all(re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", user) for user in users)
    assert users[-1].partition(":")[0] == str(PODS[0][2]["securityContext"]["runAsUser"])


def test_dockerfile_starts_from_a_pinned_ray_and_copies_what_exists():
    lines = dockerfile()
    assert dict(lines)["FROM"].startswith("rayproject/ray:${RAY_VERSION}")
    sources = [s for word, rest in lines if word == "COPY" for s in shlex.split(rest)[:-1] if not s.startswith("--")]
    ignored = (CONFIGS / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source.removeprefix('./')}" in ignored
    assert "*" in ignored
    (workdir,) = (rest for word, rest in lines if word == "WORKDIR")
    for _, document in of_kuberay():
        for path in re.findall(r"(/\S+)/workflows/", document["spec"].get("entrypoint", "")):
            assert path == workdir


def test_runtime_env_is_one_that_ray_takes_without_packages_or_secrets(monkeypatch):
    from ray.runtime_env import RuntimeEnv

    monkeypatch.chdir(ROOT)
    settings = yaml.safe_load((CONFIGS / "runtime_env.yaml").read_text(encoding="utf-8"))
    RuntimeEnv(**settings)
    assert set(settings) == {"working_dir", "excludes", "env_vars"}
    assert not [name for name in settings["env_vars"] if re.search(r"TOKEN|KEY|SECRET|PASSWORD", name)]
    assert {".git/", ".s2l*/"} <= set(settings["excludes"])


STANDINS = {
    "scontrol": "printf 'node-a\\nnode-b\\n'",
    # The step runs once, on the first node.
    "srun": 'while [ "${1#-}" != "$1" ]; do shift; done; exec "$@"',
    "hostname": "echo '10.1.2.3 172.17.0.1 '",
    "ray": 'printf \'%s\\n\' "$@" > "$RECORD"; env > "$RECORD.env"; cat "$RAY_AUTH_TOKEN_PATH" > "$RECORD.token"\n'
    'stat -c %a "$RAY_AUTH_TOKEN_PATH" > "$RECORD.mode"; exit "${RAY_EXIT:-0}"',
}


@pytest.fixture
def slurm(tmp_path):
    """Return a function that runs slurm.sh with stand-ins for Slurm and Ray."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in STANDINS.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(stat.S_IRWXU)
    (folder / "python").symlink_to(sys.executable)
    record = tmp_path / "record"

    def run(*arguments, **environment):
        env = {
            "PATH": f"{folder}:/usr/bin:/bin",
            "HOME": str(tmp_path),
            "RECORD": str(record),
            "SLURM_JOB_ID": "123456",
            "SLURM_JOB_NODELIST": "node-[a-b]",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_CPUS_PER_TASK": "16",
            "SLURM_GPUS_ON_NODE": "4",
            "S2L_STORAGE": "/shared/s2l",
            **environment,
        }
        script = ["bash", str(CONFIGS / "slurm.sh"), *arguments]
        return subprocess.run(script, env=env, capture_output=True, text=True, timeout=30, check=False), record

    return run


def test_slurm_starts_ray_on_all_nodes_and_the_run_with_the_users_arguments(slurm, tmp_path):
    done, record = slurm("workflows/quickstart.yaml", "--set", "resources.train_proxy={workers: 8, gpus: 1}")
    assert done.returncode == 0, done.stderr
    assert "--cpus-per-task" in (CONFIGS / "slurm.sh").read_text().rpartition("srun --nodes")[2]
    words = record.read_text().splitlines()
    ray_part, run_part = words[: words.index("--")], words[words.index("--") + 1 :]
    address = ray_part[ray_part.index("--address") + 1]
    assert address == "10.1.2.3:23456"
    assert ray_part[ray_part.index("--min-nodes") + 1] == "2"
    assert {"--num-cpus=16", "--num-gpus=4"} <= set(ray_part)
    assert run_part[:3] == ["python", "-m", "s2l_ray"]
    arguments = _parser().parse_args(run_part[3:])
    assert arguments.config == "workflows/quickstart.yaml"
    experiment = load_experiment(ROOT / arguments.config, [*arguments.set, f"storage={arguments.storage}"])
    for config in experiment.arms.values():
        assert config.resources.address == address
        assert config.resources.train_proxy.workers == 8
        assert config.storage == "/shared/s2l"


def test_slurm_gives_every_job_a_token_that_only_its_user_reads_and_takes_it_away(slurm, tmp_path):
    done, record = slurm("workflows/quickstart.yaml")
    first = Path(f"{record}.token").read_text().strip()
    slurm("workflows/quickstart.yaml")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"[0-9a-f]{64}", first)
    assert first != Path(f"{record}.token").read_text().strip()
    assert Path(f"{record}.mode").read_text().strip() == "600"
    environment = Path(f"{record}.env").read_text()
    assert "RAY_AUTH_MODE=token" in environment
    assert first not in environment + record.read_text()
    assert not list((tmp_path / ".ray").iterdir())


def test_slurm_passes_on_how_the_run_ended(slurm):
    assert slurm("workflows/quickstart.yaml", RAY_EXIT="2")[0].returncode == 2
    no_workflow, _ = slurm()
    assert no_workflow.returncode == 2
    assert "usage" in no_workflow.stderr
    assert "S2L_STORAGE" in slurm("workflows/quickstart.yaml", S2L_STORAGE="")[0].stderr


def test_slurm_uses_options_that_symmetric_run_takes(slurm):
    from ray.scripts.symmetric_run import curate_and_validate_ray_start_args

    _, record = slurm("workflows/quickstart.yaml")
    words = record.read_text().splitlines()
    assert words[0] == "symmetric-run"
    rest = curate_and_validate_ray_start_args(words[1 : words.index("--")])
    assert rest == ["--num-cpus=16", "--num-gpus=4"]


# -------------------------------------------------------------------------------------------------------- monitoring


def test_dashboard_shows_metrics_that_ray_itself_shows():
    import ray.dashboard.modules.metrics.dashboards.default_dashboard_panels as panels

    source = Path(panels.__file__).read_text(encoding="utf-8")
    dashboard = json.loads((CONFIGS / "monitoring/grafana-dashboard.json").read_text(encoding="utf-8"))
    used = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"\b(?:ray|autoscaler)_[a-z_]+", target["expr"])
    }
    assert len(used) >= 10
    assert not {name for name in used if name not in source}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_pod_monitor_scrapes_ports_that_the_pods_have_and_the_policy_opens():
    (monitor,) = documents(CONFIGS / "monitoring/podmonitor.yaml")
    ports = {
        port["name"]: port["containerPort"]
        for _, _, spec in PODS
        for container in spec["containers"]
        for port in container.get("ports", [])
    }
    scraped = {ports[endpoint["port"]] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
    (policy,) = by_kind("NetworkPolicy")
    opened = {port["port"] for rule in policy["spec"]["ingress"] for port in rule.get("ports", [])}
    assert scraped <= opened
    selected = monitor["spec"]["selector"]["matchLabels"]
    assert all(selected.items() <= template["metadata"]["labels"].items() for _, template, _ in PODS)
