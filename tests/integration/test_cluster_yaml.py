"""`cluster.yaml` and docs/aws.md against Ray's launcher, the jobs' needs and a simulated EC2 (moto)."""

import ast
import copy
import json
import os
import re
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import click
import pytest
import yaml
from botocore.exceptions import ClientError
from conftest import ROOT
from packaging.requirements import Requirement

from petseg.cluster import resources
from petseg.cluster.aws import AWSProvider, check, check_closed
from petseg.config.train import TrainConfig
from petseg.errors import InputError
from petseg.training import fit, recipes

TEXT = (ROOT / "cluster.yaml").read_text()
PAGE = (ROOT / "docs" / "aws.md").read_text()
REGION = "eu-central-1"
ZONES = "eu-central-1a,eu-central-1b,eu-central-1c"
FILLED_IN = {"region": REGION, "zones": ZONES, "image": "ami-12c6146b", "security_group": "sg-0123456789abcdef0"}
ANYWHERE = {"0.0.0.0/0", "::/0"}


def fill_in(**values: str) -> dict[str, Any]:
    """Return cluster.yaml, parsed, with `values` filled in, and FILLED_IN for the rest."""
    text = TEXT
    for field, value in (FILLED_IN | values).items():
        text, found = re.subn(rf"(?m)^(  {field}: &{field}) FILL_IN ", rf"\1 {value} ", text)
        assert found == 1
    return yaml.safe_load(text)


CONFIG = fill_in()
NODE_TYPES: dict[str, Any] = CONFIG["available_node_types"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Home folder with Ray's token. The working directory is the checkout."""
    write_token(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)
    return tmp_path


def write_token(folder: Path) -> None:
    (folder / ".ray").mkdir()
    (folder / ".ray" / "auth_token").write_text("a" * 64)


# Validity for Ray, and settings of Ray.


def test_cluster_yaml_is_valid_for_ray() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(CONFIG)
    validate_config(config)
    assert config["available_node_types"]["head"]["max_workers"] == 0
    assert config["worker_setup_commands"] == config["head_setup_commands"] == CONFIG["setup_commands"]
    config["available_node_types"]["cpu"]["resources"]["CPU"] = 0.5
    with pytest.raises(Exception, match=r"0\.5 is not of type 'integer'"):
        validate_config(config)


def start_commands() -> list[str]:
    return [line for kind in ("head", "worker") for line in CONFIG[f"{kind}_start_ray_commands"] if "ray start" in line]


def test_start_commands_require_the_token_and_keep_dashboard_on_loopback() -> None:
    head, worker = start_commands()
    for command in (head, worker):
        assert "export RAY_AUTH_MODE=token; ray start " in command
    assert re.findall(r"--dashboard-host=(\S+)", head) == ["127.0.0.1"]
    assert "--num-cpus=0 " in head and "--autoscaling-config=~/ray_bootstrap_config.yaml" in head
    assert CONFIG["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"  # noqa: S105 - where it lies
    assert "chmod 600 ~/.ray/auth_token" in CONFIG["setup_commands"]


def test_worker_start_commands_watch_for_the_spot_notice_after_ray_start() -> None:
    """The command must return at once and survive the SSH session. tests/integration/test_submit.py runs it."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    stop, start, watch = CONFIG["worker_start_ray_commands"]
    assert stop == "ray stop" and "ray start " in start
    assert re.fullmatch(
        r"export RAY_AUTH_MODE=token; nohup python -m petseg\.cluster\.spot < /dev/null >> \S+/spot\.log 2>&1 &", watch
    )
    log = re.findall(r">> (\S+)", watch)[0]
    assert f"`{log}`" in PAGE
    # Only spot instances need it, but Ray has no start commands by node type.
    config = prepare_config(CONFIG)
    config["available_node_types"]["gpu"]["worker_start_ray_commands"] = CONFIG["worker_start_ray_commands"]
    with pytest.raises(Exception, match="'worker_start_ray_commands' was unexpected"):
        validate_config(config)


def test_setup_commands_pin_versions_allowed_by_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    setup = " ".join(CONFIG["setup_commands"])
    pins = {name: version for name, version in re.findall(r"'(\w+)(?:\[[\w,]+\])?==([\d.]+)'", setup)}
    allowed = {Requirement(line).name: Requirement(line) for line in project["dependencies"]}
    assert {"ray", "torch", "torchvision", "numpy", "pillow", "pyarrow", "boto3"} <= set(pins)
    for name, version in pins.items():
        assert allowed[name].specifier.contains(version)
    assert f"'ray[{','.join(sorted(allowed['ray'].extras))}]==" in setup
    assert f'petseg.__version__ == "{project["version"]}"' in setup
    mounted = {Path(local).name for local in CONFIG["file_mounts"].values()}
    assert mounted == {"petseg", "pyproject.toml", project["readme"], *project["license-files"], "auth_token"}


def test_node_configs_no_open_ports_and_encrypted_disks() -> None:
    assert not [address for address in ANYWHERE if address in TEXT]
    # Without a given group Ray creates one and opens SSH in it to the world.
    assert "security_group" not in CONFIG["provider"]
    for node in (kind["node_config"] for kind in NODE_TYPES.values()):
        assert node["SecurityGroupIds"] == [FILLED_IN["security_group"]]
        assert all(disk["Ebs"]["Encrypted"] is True for disk in node["BlockDeviceMappings"])
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert node["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
    profiles = {name: kind["node_config"]["IamInstanceProfile"]["Name"] for name, kind in NODE_TYPES.items()}
    assert profiles == {"head": "petseg-head", "cpu": "petseg-worker", "gpu": "petseg-worker"}


def test_cluster_yaml_idle_cluster_shrinks_to_its_head() -> None:
    assert NODE_TYPES["head"]["resources"] == {"CPU": 0}
    assert {kind.get("min_workers", 0) for kind in NODE_TYPES.values()} == {0}
    assert 0 < CONFIG["idle_timeout_minutes"] <= 15
    assert CONFIG["provider"]["cache_stopped_nodes"] is False
    assert {name for name, kind in NODE_TYPES.items() if "InstanceMarketOptions" in kind["node_config"]} == {"gpu"}


# Resources that the jobs request.


def fitting_node_types(bundle: dict[str, float]) -> set[str]:
    """Return the node types with enough resources for the bundle."""
    return {
        name
        for name, kind in NODE_TYPES.items()
        if all(kind["resources"].get(resource, 0) >= amount for resource, amount in bundle.items())
    }


@pytest.mark.parametrize("use_gpu", [False, True])
def test_node_types_a_training_worker_fits(use_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(resources, "require", lambda bundle, *_: asked.append(bundle))
    nodes = [{"Alive": True, "Resources": kind["resources"]} for kind in NODE_TYPES.values()]
    monkeypatch.setattr(resources.ray, "nodes", lambda: nodes)
    config = recipes.resolve(TrainConfig(use_gpu=use_gpu))
    fit.require_workers(config, 1 if use_gpu else resources.cpus_per_worker(config.max_workers))
    assert fitting_node_types(asked[0]) == ({"gpu"} if use_gpu else {"cpu", "gpu"})


def ray_data_requests() -> list[dict[str, float]]:
    """Return the largest possible request of each `map_batches` call in petseg. The default is 1 CPU."""
    found = []
    for path in (ROOT / "petseg").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "map_batches":
                given = {keyword.arg: keyword.value for keyword in call.keywords}
                bundle = {"CPU": largest_value(given["num_cpus"]) if "num_cpus" in given else 1.0}
                found.append(bundle | ({"GPU": largest_value(given["num_gpus"])} if "num_gpus" in given else {}))
    return found


def largest_value(value: ast.expr) -> float:
    """Return the largest possible value of `A if B else C` or of a number."""
    if isinstance(value, ast.IfExp):
        return max(largest_value(value.body), largest_value(value.orelse))
    return float(ast.literal_eval(value))


def test_node_types_each_ray_data_request_fits() -> None:
    found = ray_data_requests()
    assert {"CPU": 1.0} in found and {"CPU": 0.5, "GPU": 1.0} in found and {"CPU": 0.25} in found
    for bundle in found:
        assert "gpu" in fitting_node_types(bundle)
        assert ("cpu" in fitting_node_types(bundle)) == ("GPU" not in bundle)


# Fields that the user fills in.


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("region", "FILL_IN", "cluster.yaml, region: it is FILL_IN; give a region, such as eu-central-1"),
        ("zones", "FILL_IN", "cluster.yaml, zones: it is FILL_IN; give two zones or more"),
        ("zones", "eu-central-1a", "cluster.yaml, zones: it is eu-central-1a; give two zones or more"),
        ("zones", "eu-central-1a,eu-west-1a", "zones: eu-west-1a is not in the region eu-central-1; give"),
        ("image", "FILL_IN", "cluster.yaml, image: it is FILL_IN; give the id of an image, ami-"),
        ("security_group", "FILL_IN", "cluster.yaml, security_group: it is FILL_IN; give the id of"),
        ("security_group", "default", "cluster.yaml, security_group: it is default; give the id of"),
    ],
)
@pytest.mark.usefixtures("home")
def test_check_field_not_filled_in_is_refused_by_name(field: str, value: str, message: str) -> None:
    check(CONFIG)
    config = fill_in(**{field: value})
    with pytest.raises(InputError) as caught:
        check(config)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert AWSProvider.fillout_available_node_types_resources(config) == config
    with pytest.raises(click.ClickException, match=re.escape(message)):
        AWSProvider.bootstrap_config(config)


def test_check_missing_token_or_wrong_folder_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / ".ray" / "auth_token").unlink()
    with pytest.raises(InputError, match=r"there is no ~/\.ray/auth_token; make one: `ray get-auth-token --generate`"):
        check(CONFIG)
    monkeypatch.chdir(home)
    with pytest.raises(InputError, match=r"there is no \./petseg; run `ray up` in the folder of the checkout"):
        check(CONFIG)


SELF = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": "sg-1"}], "IpRanges": [], "Ipv6Ranges": []}
SSH = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "UserIdGroupPairs": [], "IpRanges": [], "Ipv6Ranges": []}


def test_check_closed_open_or_unconnected_group_is_refused() -> None:
    check_closed("sg-1", [SELF, SSH | {"IpRanges": [{"CidrIp": "203.0.113.7/32"}]}])
    with pytest.raises(InputError, match=r"sg-1: port 22 is open to 0\.0\.0\.0/0"):
        check_closed("sg-1", [SELF, SSH | {"IpRanges": [{"CidrIp": "203.0.113.7/32"}, {"CidrIp": "0.0.0.0/0"}]}])
    with pytest.raises(InputError, match="sg-1: port 22 is open to ::/0"):
        check_closed("sg-1", [SELF, SSH | {"Ipv6Ranges": [{"CidrIpv6": "::/0"}]}])
    with pytest.raises(InputError, match=r"sg-1: everything is open to 0\.0\.0\.0/0"):
        check_closed("sg-1", [SELF | {"IpRanges": [{"CidrIp": "0.0.0.0/0"}]}])
    with pytest.raises(InputError, match="sg-1: its members cannot reach one another"):
        check_closed("sg-1", [SSH, SELF | {"UserIdGroupPairs": [{"GroupId": "sg-2"}]}])


# The launcher itself, with a server that simulates EC2 and IAM.


def launcher(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that takes seconds and does not use the session's Ray."""
    return pytest.mark.ray(pytest.mark.own_ray(test))


class Aws:
    """moto's server with the user's resources, and the home folder of the user who runs `ray up`."""

    def __init__(self, url: str, home: Path) -> None:
        keys = {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_EC2_METADATA_DISABLED": "true"}
        # Ray caches its findings between two `ray up` in the folder for temporary files.
        self.environment = {**os.environ, **keys, "HOME": str(home), "TMPDIR": str(home), "AWS_ENDPOINT_URL": url}
        self.home = home
        credentials = {"aws_access_key_id": "none", "aws_secret_access_key": "none"}
        self.ec2 = boto3.client("ec2", region_name=REGION, endpoint_url=url, **credentials)
        self.iam = boto3.client("iam", region_name=REGION, endpoint_url=url, **credentials)
        vpc = self.ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
        self.group = self.ec2.create_security_group(GroupName="petseg", Description="petseg", VpcId=vpc)["GroupId"]
        ssh = SSH | {"IpRanges": [{"CidrIp": "203.0.113.7/32"}]}
        members = SELF | {"UserIdGroupPairs": [{"GroupId": self.group}]}
        self.ec2.authorize_security_group_ingress(GroupId=self.group, IpPermissions=[ssh, members])
        for name in ("petseg-head", "petseg-worker"):
            self.iam.create_role(RoleName=name, AssumeRolePolicyDocument="{}")
            self.iam.create_instance_profile(InstanceProfileName=name)
            self.iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
        self.image = self.ec2.describe_images()["Images"][0]["ImageId"]

    def config(self) -> dict[str, Any]:
        return fill_in(image=self.image, security_group=self.group)

    def instances(self, *filters: dict[str, Any]) -> list[dict[str, Any]]:
        reservations = self.ec2.describe_instances(Filters=list(filters))["Reservations"]
        return [instance for reservation in reservations for instance in reservation["Instances"]]

    def ray(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run Ray's command line. It does not wait for SSH, because no machine answers."""
        return subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", *words],
            cwd=ROOT,
            env=self.environment | {"AUTOSCALER_NODE_START_WAIT_S": "-1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = tmp_path_factory.mktemp("home")
    write_token(home)
    log = (home / "moto.log").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, (home / "moto.log").read_text()
                time.sleep(0.1)
        yield Aws(f"http://127.0.0.1:{port}", home)
    finally:
        server.terminate()
        server.wait()
        log.close()


@pytest.fixture(scope="module")
def launched(aws: Aws) -> Aws:
    """State after `ray up`, which has created the head and cannot reach it."""
    config = aws.home / "cluster.yaml"
    config.write_text(yaml.safe_dump(aws.config()))
    done = aws.ray("up", "--yes", str(config))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Launched a new head node" in done.stdout and "wait_ready timeout exceeded" in done.stdout + done.stderr
    return aws


@launcher
def test_node_types_resources_equal_the_instance_types(aws: Aws) -> None:
    for name, kind in NODE_TYPES.items():
        wanted = kind["node_config"]["InstanceType"]
        found = aws.ec2.describe_instance_types(InstanceTypes=[wanted])["InstanceTypes"][0]
        has = {"CPU": found["VCpuInfo"]["DefaultVCpus"] if name != "head" else 0}
        has |= {"GPU": sum(gpu["Count"] for gpu in found["GpuInfo"]["Gpus"])} if "GpuInfo" in found else {}
        assert kind["resources"] == has
        assert found["ProcessorInfo"]["SupportedArchitectures"] == ["x86_64"]


@launcher
def test_ray_up_unchanged_file_names_the_first_field(aws: Aws) -> None:
    done = aws.ray("up", "--yes", "cluster.yaml")
    assert done.returncode == 1
    assert "cluster.yaml, region: it is FILL_IN; give a region" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stdout + done.stderr


@launcher
def test_ray_up_creates_one_head_as_configured(launched: Aws) -> None:
    (head,) = launched.instances({"Name": "tag:ray-node-type", "Values": ["head"]})
    assert head["InstanceType"] == "m6i.large" and head["ImageId"] == launched.image
    assert head["IamInstanceProfile"]["Arn"].endswith(":instance-profile/petseg-head")
    assert [group["GroupId"] for group in head["SecurityGroups"]] == [launched.group]
    assert head["MetadataOptions"]["HttpTokens"] == "required"
    assert head["Placement"]["AvailabilityZone"] == ZONES.split(",")[0]
    tags = {tag["Key"]: tag["Value"] for tag in head["Tags"]}
    assert tags["ray-cluster-name"] == "petseg" and tags["ray-node-status"] == "update-failed"
    disks = [disk["Ebs"]["VolumeId"] for disk in head["BlockDeviceMappings"]]
    volumes = launched.ec2.describe_volumes(VolumeIds=disks)["Volumes"]
    assert [(volume["Encrypted"], volume["VolumeType"]) for volume in volumes] == [(True, "gp3")]


@launcher
def test_ray_up_opens_no_port_and_creates_no_role(launched: Aws) -> None:
    groups = launched.ec2.describe_security_groups()["SecurityGroups"]
    assert {group["GroupName"] for group in groups} == {"default", "petseg"}
    for rule in (rule for group in groups for rule in group["IpPermissions"]):
        ranges = [entry["CidrIp"] for entry in rule["IpRanges"]]
        assert not ANYWHERE & {*ranges, *(entry["CidrIpv6"] for entry in rule.get("Ipv6Ranges", []))}
    mine = {"petseg-head", "petseg-worker"}
    assert {role["RoleName"] for role in launched.iam.list_roles()["Roles"]} == mine
    profiles = launched.iam.list_instance_profiles()["InstanceProfiles"]
    assert {profile["InstanceProfileName"] for profile in profiles} == mine
    assert launched.iam.list_policies(Scope="Local")["Policies"] == []
    assert [key["KeyName"] for key in launched.ec2.describe_key_pairs()["KeyPairs"]] == ["petseg"]
    assert (launched.home / ".ssh" / "petseg.pem").stat().st_mode & 0o777 == 0o600


@pytest.fixture(scope="module")
def resolved(launched: Aws) -> Iterator[dict[str, Any]]:
    """Configuration of the head's autoscaler. While it is in use, AWS is moto for this process too."""
    from ray.autoscaler._private import commands
    from ray.autoscaler._private.aws import utils

    with pytest.MonkeyPatch.context() as patch:
        for name, value in launched.environment.items():  # the session's Ray may have set other values
            patch.setenv(name, value)
        patch.chdir(ROOT)
        utils.resource_cache.cache_clear()
        utils.client_cache.cache_clear()
        yield commands._bootstrap_config(launched.config(), no_config_cache=True)
        utils.resource_cache.cache_clear()
        utils.client_cache.cache_clear()


def launch_nodes(config: dict[str, Any], kind: str, count: int, refusal: str | None, folder: Path) -> list[Exception]:
    """Let Ray's autoscaler v2 start nodes and return the failures it reports.

    EC2 refuses spot instances with the error code `refusal`, if given.
    """
    from ray.autoscaler.v2.instance_manager.config import FileConfigReader
    from ray.autoscaler.v2.instance_manager.node_provider import NodeProviderAdapter

    def refuse(params: dict[str, Any], **_: object) -> None:
        if refusal and "InstanceMarketOptions" in params:
            raise ClientError({"Error": {"Code": refusal, "Message": "none"}}, "RunInstances")

    provider = AWSProvider(config["provider"], config["cluster_name"])
    ec2: Any = provider.ec2_fail_fast
    events = ec2.meta.client.meta.events
    events.register_first("provide-client-params.ec2.RunInstances", refuse)
    path = folder / "bootstrap.json"
    path.write_text(json.dumps({key: value for key, value in config.items() if key != "head_node"}))
    adapter = NodeProviderAdapter(provider, FileConfigReader(str(path)))
    try:
        adapter.launch({kind: count}, "a request")
    finally:
        adapter._main_executor.shutdown()
        adapter._node_launcher_executors.shutdown()
        events.unregister("provide-client-params.ec2.RunInstances", refuse)
    return list(adapter.poll_errors())


@launcher
@pytest.mark.parametrize(
    ("kind", "refusal", "lifecycles"),
    [
        ("cpu", "InsufficientInstanceCapacity", [None]),
        ("gpu", None, ["spot"]),
        ("gpu", None, ["spot", None]),  # moto grants one of the two spot instances, as EC2 may
        ("gpu", "InsufficientInstanceCapacity", [None]),
        ("gpu", "MaxSpotInstanceCountExceeded", [None]),
    ],
)
def test_autoscaler_no_spot_instance_falls_back_to_on_demand(
    kind: str,
    refusal: str | None,
    lifecycles: list[str | None],
    launched: Aws,
    resolved: dict[str, Any],
    tmp_path: Path,
) -> None:
    before = {instance["InstanceId"] for instance in launched.instances()}
    assert launch_nodes(resolved, kind, len(lifecycles), refusal, tmp_path) == []
    made = [instance for instance in launched.instances() if instance["InstanceId"] not in before]
    assert sorted(map(str, (instance.get("InstanceLifecycle") for instance in made))) == sorted(map(str, lifecycles))
    for instance in made:
        assert instance["InstanceType"] == NODE_TYPES[kind]["node_config"]["InstanceType"]
        assert instance["IamInstanceProfile"]["Arn"].endswith(":instance-profile/petseg-worker")
        assert instance["MetadataOptions"]["HttpTokens"] == "required"
        assert [group["GroupId"] for group in instance["SecurityGroups"]] == [launched.group]
        assert {"Key": "ray-user-node-type", "Value": kind} in instance["Tags"]


@launcher
def test_autoscaler_other_launch_error_stays_an_error(launched: Aws, resolved: dict[str, Any], tmp_path: Path) -> None:
    before = len(launched.instances())
    (error,) = launch_nodes(resolved, "gpu", 2, "UnauthorizedOperation", tmp_path)
    assert "Failed to launch 2 nodes of type gpu" in str(error)
    assert len(launched.instances()) == before


@launcher
def test_create_node_open_security_group_is_refused(launched: Aws, resolved: dict[str, Any]) -> None:
    vpc = launched.ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    group = launched.ec2.create_security_group(GroupName="open", Description="open", VpcId=vpc)["GroupId"]
    try:
        rule = SSH | {"IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
        launched.ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[rule])
        node = copy.deepcopy(resolved["available_node_types"]["head"]["node_config"]) | {"SecurityGroupIds": [group]}
        provider = AWSProvider(resolved["provider"], "open")
        with pytest.raises(click.ClickException, match=rf"{group}: port 22 is open to 0\.0\.0\.0/0"):
            provider.create_node(node, {"ray-node-type": "head", "ray-launch-config": "none"}, 1)
        assert not launched.instances({"Name": "tag:ray-cluster-name", "Values": ["open"]})
    finally:
        launched.ec2.delete_security_group(GroupId=group)


@launcher
def test_ray_down_terminates_every_node(launched: Aws, resolved: dict[str, Any], tmp_path: Path) -> None:
    assert launch_nodes(resolved, "cpu", 1, None, tmp_path) == []
    assert {instance["State"]["Name"] for instance in launched.instances()} == {"running"}
    done = launched.ray("down", "--yes", str(launched.home / "cluster.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert {instance["State"]["Name"] for instance in launched.instances()} == {"terminated"}


# Policies on the page.


def policies() -> dict[str, list[dict[str, Any]]]:
    """Return {file name: statements} of the policies on the page."""
    found = re.findall(r"^`(\w+\.json)`, for .*?^```json\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return {name: json.loads(text)["Statement"] for name, text in found}


def as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def test_policies_have_no_wildcard_actions() -> None:
    assert set(policies()) == {"trust.json", "s3.json", "head.json", "launch.json"}
    for name, statements in policies().items():
        for statement in statements:
            assert statement["Effect"] == "Allow" and "NotAction" not in statement
            actions = as_list(statement["Action"])
            assert not [action for action in actions if "*" in action]
            if name == "trust.json":
                assert statement["Principal"] == {"Service": "ec2.amazonaws.com"} and actions == ["sts:AssumeRole"]
            elif "*" in as_list(statement["Resource"]):  # EC2's Describe actions have no resources
                assert all(action.startswith("ec2:Describe") for action in actions)


def test_s3_policy_allows_one_prefix_of_one_bucket() -> None:
    (files, listing) = policies()["s3.json"]
    assert files["Resource"] == "arn:aws:s3:::BUCKET/PREFIX/*"
    assert set(as_list(files["Action"])) >= {"s3:GetObject", "s3:PutObject", "s3:DeleteObject"}
    assert (listing["Action"], listing["Resource"]) == ("s3:ListBucket", "arn:aws:s3:::BUCKET")
    assert listing["Condition"] == {"StringLike": {"s3:prefix": ["PREFIX", "PREFIX/*"]}}
    others = [statement for name in ("head.json", "launch.json") for statement in policies()[name]]
    assert not [action for statement in others for action in as_list(statement["Action"]) if action.startswith("s3:")]


def test_head_policy_is_limited_to_its_own_cluster() -> None:
    for name, roles in (("head.json", ["petseg-worker"]), ("launch.json", ["petseg-head"])):
        statements = policies()[name]
        for statement in statements:
            actions = set(as_list(statement["Action"]))
            if "iam:PassRole" in actions:
                assert statement["Resource"] == [f"arn:aws:iam::ACCOUNT:role/{role}" for role in roles]
                assert statement["Condition"]["StringEquals"]["iam:PassedToService"] == "ec2.amazonaws.com"
            if "ec2:TerminateInstances" in actions:
                assert statement["Condition"]["StringEquals"]["aws:ResourceTag/ray-cluster-name"] == "petseg"
        (instances,) = [s for s in statements if s.get("Sid") == "RunInstances"]
        equal = instances["Condition"]["StringEquals"]
        kinds = {"cpu", "gpu"} if name == "head.json" else {"head"}
        types = {NODE_TYPES[kind]["node_config"]["InstanceType"] for kind in kinds}
        assert set(as_list(equal["ec2:InstanceType"])) == types
        assert equal["ec2:MetadataHttpTokens"] == "required"
        assert equal["aws:RequestTag/ray-cluster-name"] == CONFIG["cluster_name"]
        (disks,) = [s for s in statements if s.get("Sid") == "EncryptedDisks"]
        assert disks["Condition"] == {"Bool": {"ec2:Encrypted": "true"}}


def test_aws_page_has_no_open_address() -> None:
    assert not [address for address in ANYWHERE if address in PAGE]
