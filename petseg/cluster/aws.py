"""What Ray's cluster launcher lacks on AWS: a look at what the user filled in, and on-demand where there is no spot.

`cluster.yaml` names the class here; `ray up` loads it on the user's machine, and the autoscaler on the head. Nothing
else imports this file.
"""

import contextlib
import ipaddress
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import click
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.cli_logger import cli_logger
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import NODE_KIND_HEAD, TAG_RAY_NODE_KIND

from petseg.errors import InputError

Config = dict[str, Any]

_REGION = r"[a-z]{2}(-[a-z]+)+-\d"

_FIELDS = {
    "region": (_REGION, "a region, such as eu-central-1"),
    "zones": (rf"{_REGION}[a-z](, ?{_REGION}[a-z])+", "two zones or more, such as eu-central-1a,eu-central-1b"),
    "image": (r"ami-[0-9a-f]{8,17}", "the id of an image, ami-…"),
    "security_group": (r"sg-[0-9a-f]{8,17}", "the id of a security group, sg-…"),
}

_NO_SPOT = {"InsufficientInstanceCapacity", "MaxSpotInstanceCountExceeded", "SpotMaxPriceTooLow"}
"""How EC2 says that it has no spot instance for us now, or none at all."""


def check(config: Config) -> None:
    """Raise `InputError`, naming the field, where `cluster.yaml` has not been filled in, or what it copies is not
    there.
    """
    for field, (pattern, wanted) in _FIELDS.items():
        value = str(config.get("metadata", {}).get(field, ""))
        if not re.fullmatch(pattern, value):
            raise InputError(f"cluster.yaml, {field}: it is {value or 'empty'}; give {wanted} (docs/aws.md says how)")
    region = config["metadata"]["region"]
    for zone in _split(config["metadata"]["zones"]):
        if zone[:-1] != region:
            raise InputError(f"cluster.yaml, zones: {zone} is not in the region {region}; give zones of that one")
    for local in config["file_mounts"].values():
        if not Path(local).expanduser().exists():
            remedy = "make one: `ray get-auth-token --generate`" if "token" in local else "run this where it is"
            raise InputError(f"cluster.yaml, file_mounts: there is no {local}; {remedy}")


def _split(zones: str) -> list[str]:
    return [zone.strip() for zone in zones.split(",")]


def check_closed(group: str, rules: list[Config]) -> None:
    """Raise `InputError` where the inbound rules of a security group, as EC2 describes them, let the whole world in, or
    do not let its own members talk to one another.
    """
    for rule in rules:
        ranges = [entry["CidrIp"] for entry in rule.get("IpRanges", [])]
        ranges += [entry["CidrIpv6"] for entry in rule.get("Ipv6Ranges", [])]
        for network in ranges:
            if ipaddress.ip_network(network).prefixlen == 0:
                port = rule.get("FromPort", -1)
                what = "everything" if port == -1 else f"port {port}"
                raise InputError(f"security_group {group}: {what} is open to {network}; let in your address only")
    members = {pair.get("GroupId") for rule in rules if rule["IpProtocol"] == "-1" for pair in rule["UserIdGroupPairs"]}
    if group not in members:
        raise InputError(f"security_group {group}: its members cannot reach one another; add the rule of docs/aws.md")


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """What is the user's to mend, as Ray's command line shows it: without a traceback."""
    try:
        yield
    except InputError as error:
        raise click.ClickException(str(error)) from error


class AWSProvider(AWSNodeProvider):
    """Ray's provider for AWS. Where EC2 has no spot instances in any of the zones, the nodes come on demand.

    Ray's autoscaler (2.60) would ask for the same spot instances for ever: it turns to another node type only after one
    that started and then failed, not where none could be had.
    """

    @staticmethod
    def fillout_available_node_types_resources(cluster_config: Config) -> Config:
        """The configuration with what EC2 says of its types of machine, where it has been filled in."""
        with contextlib.suppress(InputError):  # `bootstrap_config` says it: `ray up` goes on after an exception here
            check(cluster_config)
            return AWSNodeProvider.fillout_available_node_types_resources(cluster_config)
        return cluster_config

    @staticmethod
    def bootstrap_config(cluster_config: Config) -> Config:
        """The configuration with what else AWS has to be asked for. Ends `ray up` with one line where it is wrong."""
        with _one_line():
            check(cluster_config)
        return AWSNodeProvider.bootstrap_config(cluster_config)

    def create_node(self, node_config: Config, tags: dict[str, str], count: int) -> Config:
        """Instances by their id; of those that spot cannot give, as many on demand."""
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
            cli_logger.warning("no spot instances for {} of {} nodes: taking them on demand", missing, count)
            on_demand = {key: value for key, value in node_config.items() if key != "InstanceMarketOptions"}
            made |= super().create_node(on_demand, tags, missing)
        return made

    def _check_groups(self, groups: list[str]) -> None:
        with _one_line():
            ec2 = boto3.client("ec2", self.provider_config["region"])
            for group in ec2.describe_security_groups(GroupIds=groups)["SecurityGroups"]:
                check_closed(group["GroupId"], group["IpPermissions"])
