"""The AWS VPC CNI's iptables rules on a node: the source address of what leaves the VPC, and the connection marks that
send it, and the answers to NodePorts, by the primary interface.

::

    mangle PREROUTING    to the node itself, in by eth0 ─ mark the connection 0x80;  from eni+ ─ its mark to the packet
    nat PREROUTING       from eni+, out of the VPC ─ AWS-CONNMARK-CHAIN-0: mark the connection 0x80
    nat POSTROUTING      out of the VPC ─ AWS-SNAT-CHAIN-0: SNAT to the node's primary address

Sources: aws/amazon-vpc-cni-k8s pkg/networkutils/network.go, iptables_connmark.go.
"""

from __future__ import annotations

from emulator.cluster.model import Node, Vpc
from emulator.plan.model import Chain, IptablesRules, Jump, Rule

IPAMD = "ipamd"
MARK = "0x80"  # network.go: defaultConnmark
NODE_PORT_SUPPORT = "AWS_VPC_CNI_NODE_PORT_SUPPORT"


def mangle_rules(node: Node, *, marked: bool) -> IptablesRules:
    """Connection marks: by which interface the answers of pods leave; ``marked``: NodePorts are supported too."""
    comment = ("-m", "comment", "--comment", "AWS, primary ENI")
    restore = ("-j", "CONNMARK", "--restore-mark", "--mask", MARK)
    marks = (
        Rule(
            (
                *comment,
                *("-i", node.device, "-m", "addrtype", "--dst-type", "LOCAL", "--limit-iface-in"),
                *("-j", "CONNMARK", "--set-mark", f"{MARK}/{MARK}"),
            ),
            "what came to the node's own address (a NodePort) is to be answered by this interface",
        ),
    )
    rules = (
        *(marks if marked else ()),
        Rule((*comment, "-i", "eni+", *restore), "replies of pods: the connection's mark becomes the packet's"),
        *((Rule((*comment, "-i", "vlan+", *restore), "the same for pods with a branch interface"),) if marked else ()),
    )
    return IptablesRules(
        ns=node.ns,
        family=4,
        table="mangle",
        owner="aws-cni",
        chains=(),
        jumps=tuple(Jump("PREROUTING", rule) for rule in rules),
        component=IPAMD,
        why="connection marks decide the interface before routing, where NAT is not yet undone"
        if marked
        else f"{NODE_PORT_SUPPORT}=false: what comes to the node's own address is not marked",
    )


def nat_rules(vpc: Vpc, node: Node) -> IptablesRules:
    """AWS_VPC_K8S_CNI_EXTERNALSNAT=false: what leaves the VPC gets the primary address, and a mark for rule 1024."""
    connmark = ("-m", "comment", "--comment", "AWS, CONNMARK", "-j", "CONNMARK")
    snat = Chain(
        "AWS-SNAT-CHAIN-0",
        (
            *(
                Rule(
                    ("-d", cidr, "-m", "comment", "--comment", "AWS SNAT CHAIN", "-j", "RETURN"),
                    "within the VPC pods keep their addresses",
                )
                for cidr in vpc.cidrs
            ),
            Rule(
                (
                    *("!", "-o", "vlan+", "-m", "comment", "--comment", "AWS, SNAT"),
                    *("-m", "addrtype", "!", "--dst-type", "LOCAL"),
                    *("-j", "SNAT", "--to-source", node.addresses[0], "--random-fully"),
                ),
                "out of the VPC: the primary address of the primary interface",
            ),
        ),
    )
    mark = Chain(
        "AWS-CONNMARK-CHAIN-0",
        (
            *(
                Rule(
                    ("-d", cidr, "-m", "comment", "--comment", "AWS CONNMARK CHAIN", "-j", "RETURN"),
                    "within the VPC a pod's own interface is the way",
                )
                for cidr in vpc.cidrs
            ),
            Rule((*connmark, "--set-xmark", f"{MARK}/{MARK}"), "out of the VPC: by the primary interface"),
        ),
    )
    return IptablesRules(
        ns=node.ns,
        family=4,
        table="nat",
        owner="aws-cni",
        chains=(snat, mark),
        jumps=(
            Jump(
                "POSTROUTING",
                Rule(
                    ("-m", "comment", "--comment", "AWS SNAT CHAIN", "-j", "AWS-SNAT-CHAIN-0"), "everything that leaves"
                ),
            ),
            Jump(
                "PREROUTING",
                Rule(
                    (
                        *("-i", "eni+", "-m", "comment", "--comment", "AWS, outbound connections"),
                        *("-j", "AWS-CONNMARK-CHAIN-0"),
                    ),
                    "new connections of pods",
                ),
            ),
            Jump(
                "PREROUTING",
                Rule(
                    (*connmark, "--restore-mark", "--mask", MARK),
                    "the first packet of a connection; the mangle table does it for the others",
                ),
            ),
        ),
        component=IPAMD,
        why="pods reach the world outside of the VPC with the node's address",
    )
