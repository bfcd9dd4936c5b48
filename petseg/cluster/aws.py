"""Extension of Ray's cluster launcher on AWS: checks of `cluster.yaml`, and on-demand nodes if there is no spot.

`cluster.yaml` names `AWSProvider`. `ray up` loads it on the user's machine, and the autoscaler loads it on the head
node. No other module imports this one.
"""

import contextlib
import ipaddress
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import click
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import NODE_KIND_HEAD, TAG_RAY_NODE_KIND

from petseg.cluster import ray_compat
from petseg.errors import InputError

Config = dict[str, Any]

_AWSNodeProvider = ray_compat.aws_node_provider()

_REGION = r"[a-z]{2}(-[a-z]+)+-\d"

_FIELDS = {
    "region": (_REGION, "a region, such as eu-central-1"),
    "zones": (rf"{_REGION}[a-z](, ?{_REGION}[a-z])+", "two zones or more, such as eu-central-1a,eu-central-1b"),
    "image": (r"ami-[0-9a-f]{8,17}", "the id of an image, ami-…"),
    "security_group": (r"sg-[0-9a-f]{8,17}", "the id of a security group, sg-…"),
}

_NO_SPOT = {"InsufficientInstanceCapacity", "MaxSpotInstanceCountExceeded", "SpotMaxPriceTooLow"}
"""Error codes with which EC2 reports that it cannot provide spot instances, now or at all."""


def check(config: Config) -> None:
    """Raise `InputError`, naming the field, if a field of `cluster.yaml` is empty or invalid, or a file that it copies
    does not exist.
    """
    for field, (pattern, wanted) in _FIELDS.items():
        value = str(config.get("metadata", {}).get(field, ""))
        if not re.fullmatch(pattern, value):
            raise InputError(f"cluster.yaml, {field}: it is {value or 'empty'}; give {wanted} (docs/aws.md says how)")
    region = config["metadata"]["region"]
    for zone in _split(config["metadata"]["zones"]):
        if zone[:-1] != region:
            raise InputError(f"cluster.yaml, zones: {zone} is not in the region {region}; give zones of that region")
    for local in config["file_mounts"].values():
        if not Path(local).expanduser().exists():
            remedy = "run `ray up` in the folder of the checkout"
            if "token" in local:
                remedy = "make one: `ray get-auth-token --generate`"
            raise InputError(f"cluster.yaml, file_mounts: there is no {local}; {remedy}")


def _split(zones: str) -> list[str]:
    return [zone.strip() for zone in zones.split(",")]


def check_closed(group: str, rules: list[Config]) -> None:
    """Raise `InputError` if a security group is open to the whole world or closed to its own members.

    `rules` are its inbound rules as EC2 describes them. Members of the group must be able to reach one another.
    """
    for rule in rules:
        ranges = [entry["CidrIp"] for entry in rule.get("IpRanges", [])]
        ranges += [entry["CidrIpv6"] for entry in rule.get("Ipv6Ranges", [])]
        for network in ranges:
            if ipaddress.ip_network(network).prefixlen == 0:
                first, last = rule.get("FromPort", -1), rule.get("ToPort", -1)
                what = "everything" if first == -1 else f"port {first}" if first == last else f"ports {first} to {last}"
                raise InputError(f"security_group {group}: {what} is open to {network}; let in your address only")
    members = {pair.get("GroupId") for rule in rules if rule["IpProtocol"] == "-1" for pair in rule["UserIdGroupPairs"]}
    if group not in members:
        raise InputError(f"security_group {group}: its members cannot reach one another; add the rule of docs/aws.md")


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Turn `InputError` into the exception that Ray's command line shows as one line, without a traceback."""
    try:
        yield
    except InputError as error:
        raise click.ClickException(str(error)) from error


class AWSProvider(_AWSNodeProvider):
    """Ray's provider for AWS, which starts on-demand nodes if EC2 has no spot instances in any of the zones.

    Ray's autoscaler (2.60) by itself would request the same spot instances forever: it tries another node type only if
    a node fails after it has started, not if EC2 cannot provide one.
    """

    @staticmethod
    def fillout_available_node_types_resources(cluster_config: Config) -> Config:
        """Return the configuration with the resources of its machine types, queried from EC2.

        An incomplete configuration is returned unchanged.
        """
        with contextlib.suppress(InputError):  # `bootstrap_config` reports it: `ray up` ignores an exception here
            check(cluster_config)
            return _AWSNodeProvider.fillout_available_node_types_resources(cluster_config)
        return cluster_config

    @staticmethod
    def bootstrap_config(cluster_config: Config) -> Config:
        """Return the configuration completed from AWS. If it is invalid, end `ray up` with a one-line message."""
        with _one_line():
            check(cluster_config)
        return _AWSNodeProvider.bootstrap_config(cluster_config)

    def create_node(self, node_config: Config, tags: dict[str, str], count: int) -> Config:
        """Start `count` instances and return them by id.

        If `node_config` asks for spot instances and EC2 cannot provide all, the rest are started on demand.
        """
        if tags[TAG_RAY_NODE_KIND] == NODE_KIND_HEAD:
            self._check_groups(node_config["SecurityGroupIds"])
        if "InstanceMarketOptions" not in node_config:
            return super().create_node(node_config, tags, count)
        try:
            made = super().create_node(node_config, tags, count)
        except NodeLaunchException as error:
            if error.category not in _NO_SPOT:
                raise
            made = {}
        missing = count - len(made)
        if missing:
            ray_compat.warn_in_autoscaler_log(
                "no spot instances for {} of {} nodes: taking them on demand", missing, count
            )
            on_demand = {key: value for key, value in node_config.items() if key != "InstanceMarketOptions"}
            made |= super().create_node(on_demand, tags, missing)
        return made

    def _check_groups(self, groups: list[str]) -> None:
        with _one_line():
            ec2 = boto3.client("ec2", self.provider_config["region"])
            for group in ec2.describe_security_groups(GroupIds=groups)["SecurityGroups"]:
                check_closed(group["GroupId"], group["IpPermissions"])
