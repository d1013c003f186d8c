"""How many network interfaces, and addresses on each, EC2 gives to an instance of a type.

Sources: aws/amazon-vpc-cni-k8s pkg/vpc/vpc_ip_resource_limit.go and misc/eni-max-pods.txt (the same numbers as
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/using-eni.html).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from emulator.cluster.model import PODS_PER_NODE_MAX
from emulator.errors import UserError

INSTANCE_TYPE_LABEL = "node.kubernetes.io/instance-type"
DEFAULT_INSTANCE_TYPE = "m5.large"
ADDRESSES_PER_PREFIX = 16  # a delegated prefix is a /28
HOST_NETWORK_PODS = 2  # aws-node and kube-proxy take no address of their own, and count nevertheless


@dataclass(frozen=True)
class InstanceType:
    """``enis`` network interfaces with ``addresses`` IPv4 addresses each, the interface's own included."""

    name: str
    enis: int
    addresses: int

    @property
    def slots(self) -> int:
        """What an interface can have for pods: so many addresses, or so many prefixes."""
        return self.addresses - 1

    def max_pods(self, *, prefixes: bool = False) -> int:
        """The kubelet's ``--max-pods`` as EKS computes it; with prefixes no more than Kubernetes recommends."""
        most = self.enis * self.slots * (ADDRESSES_PER_PREFIX if prefixes else 1) + HOST_NETWORK_PODS
        return min(most, PODS_PER_NODE_MAX) if prefixes else most


INSTANCE_TYPES = {
    name: InstanceType(name, enis, addresses)
    for name, enis, addresses in (
        ("t3.nano", 2, 2),
        ("t3.micro", 2, 2),
        ("t3.small", 3, 4),
        ("t3.medium", 3, 6),
        ("t3.large", 3, 12),
        ("t3.xlarge", 4, 15),
        ("t3.2xlarge", 4, 15),
        ("m5.large", 3, 10),
        ("m5.xlarge", 4, 15),
        ("m5.2xlarge", 4, 15),
        ("m5.4xlarge", 8, 30),
        ("c5.large", 3, 10),
        ("c5.xlarge", 4, 15),
        ("c5.2xlarge", 4, 15),
        ("c5.4xlarge", 8, 30),
        ("r5.large", 3, 10),
        ("r5.xlarge", 4, 15),
        ("r5.2xlarge", 4, 15),
        ("r5.4xlarge", 8, 30),
    )
}


def instance_type(node: str, labels: Mapping[str, str]) -> InstanceType:
    """The type that the node's label names. Raises UserError for one that is not in the table."""
    name = labels.get(INSTANCE_TYPE_LABEL, DEFAULT_INSTANCE_TYPE)
    if name not in INSTANCE_TYPES:
        raise UserError(
            f"node {node}: the limits of instance type {name!r} are not known here",
            hint=f"set the label {INSTANCE_TYPE_LABEL} to one of {', '.join(INSTANCE_TYPES)}",
        )
    return INSTANCE_TYPES[name]
