"""The table of what cnilab may need from a machine: kernel features and programs, how each is recognised, who needs it.

A style's ``requires``, a scenario's, and ``pytest.mark.requires`` name entries of this table. To add one, add a line.
"""

from __future__ import annotations

from dataclasses import dataclass

from emulator.kernel import attempts as a
from emulator.kernel.trial import Trial

# linux/bpf.h
BPF_PROG_TYPE_SCHED_CLS, BPF_PROG_TYPE_XDP, BPF_PROG_TYPE_CGROUP_SOCK_ADDR = 3, 6, 18
BPF_CGROUP_INET4_CONNECT = 10
XDP_PASS = 2

IFLA_BR_VLAN_FILTERING = 7
IFLA_VXLAN_ID, IFLA_VXLAN_PORT, IFLA_VXLAN_COLLECT_METADATA = 1, 15, 25


@dataclass(frozen=True)
class KernelFeature:
    """Something that the kernel can or cannot do.

    ``option`` is the kernel's configuration option; ``modules`` are those that the attempt would load, none where the
    feature is never a module. ``autoload``: the kernel loads them itself on first use, from any user namespace; where
    it does not, only the machine's root can (``modprobe``). ``unprivileged``: tried as a user without rights.
    """

    name: str
    attempt: Trial
    option: str
    needed_by: str
    modules: tuple[str, ...] = ()
    autoload: bool = True
    unprivileged: bool = False
    without: str = ""  # what can be done where it is missing


@dataclass(frozen=True)
class Program:
    """A program of the distribution's.

    ``packages`` names its package per distribution family; ``version`` are the arguments that make it tell its version,
    ``least`` is the oldest that is known to work. ``executable`` differs from ``name`` where a kernel feature has that
    name already.
    """

    name: str
    needed_by: str
    packages: dict[str, str]
    version: tuple[str, ...] = ("--version",)
    least: str = ""
    optional: bool = False
    file: str = ""

    @property
    def executable(self) -> str:
        return self.file or self.name


def _nft(table: str, chain: str = "", family: str = "inet") -> Trial:
    """A table of its own with one chain; all trials share a namespace."""
    chain = f"chain c {{ {chain};\n}}\n" if chain else ""
    return a.program("nft", "-f", "-", stdin=f"table {family} trial_{table} {{\n{chain}}}\n")


def _rule(rule: str, table: str) -> Trial:
    """One rule by whatever iptables the machine prefers."""
    return a.program("iptables-restore", "-w", "5", "--noflush", stdin=f"*{table}\n{rule}\nCOMMIT\n")


def _iptables(command: str) -> Trial:
    """The rules of the kinds that the styles write, in one go: comment, conntrack, MARK, MASQUERADE."""
    rules = """\
*nat
-A POSTROUTING -m comment --comment trial -j MASQUERADE --random-fully
COMMIT
*filter
-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT
COMMIT
*mangle
-A PREROUTING -j MARK --set-xmark 0x1/0x1
COMMIT
"""
    return a.program(command, "-w", "5", "--noflush", stdin=rules)


def _device(
    kind: str, option: str, needed_by: str, module: str | None = None, *, without: str = "", builtin: bool = False
) -> KernelFeature:
    """A device kind; its module is called like it unless ``module`` says otherwise."""
    modules = () if builtin else (module or kind,)
    return KernelFeature(kind, a.link(kind), option, needed_by, modules, without=without)


def _queue(kind: str, option: str, needed_by: str, module: str | None = None, *, without: str = "") -> KernelFeature:
    return KernelFeature(kind, a.qdisc(kind), option, needed_by, (module or f"sch_{kind}",), without=without)


# What kindnet's stand-in for nftables' queue consists of
_QUEUED = "-A POSTROUTING -m owner --uid-owner 0 -m connlabel --label 28 -j NFQUEUE --queue-num 101 --queue-bypass"

NFT = ("nf_tables",)
NFT_NAT = (*NFT, "nft_chain_nat", "nft_masq")
XT = ("xt_comment", "xt_conntrack", "xt_mark", "xt_MASQUERADE")

KERNEL: tuple[KernelFeature, ...] = (
    # namespaces
    KernelFeature("netns", a.nothing, "CONFIG_NET_NS", "every lab"),
    KernelFeature("userns", a.user_namespace, "CONFIG_USER_NS", "labs without root", unprivileged=True, without="root"),
    KernelFeature(
        "overlayfs-in-userns",
        a.overlay,
        "CONFIG_OVERLAY_FS",
        "writable system folders per node without root",
        ("overlay",),
        unprivileged=True,
    ),
    # devices
    _device("veth", "CONFIG_VETH", "every lab"),
    _device("bridge", "CONFIG_BRIDGE", "flannel, switches of the underlay"),
    KernelFeature(
        "bridge-vlan",
        a.link_change("bridge", (IFLA_BR_VLAN_FILTERING, b"\x01")),
        "CONFIG_BRIDGE_VLAN_FILTERING",
        "bridges that separate VLANs",
        ("bridge",),
    ),
    KernelFeature(
        "bridge-nf",
        a.bridge_netfilter,
        "CONFIG_BRIDGE_NETFILTER",
        "flannel, Services on styles with a bridge",
        ("br_netfilter",),
        autoload=False,
        without="same-node Service traffic is not seen by iptables",
    ),
    _device("vxlan", "CONFIG_VXLAN", "flannel:vxlan, tunnels"),
    KernelFeature(
        "vxlan-external",
        a.link_option("vxlan", (IFLA_VXLAN_COLLECT_METADATA, b"\x01"), (IFLA_VXLAN_PORT, b"\x21\x19")),
        "CONFIG_VXLAN",
        "cilium",
        ("vxlan",),
        without="a tunnel device per peer",
    ),
    _device("geneve", "CONFIG_GENEVE", "cilium:geneve", without="vxlan"),
    _device("ipip", "CONFIG_NET_IPIP", "calico:ipip, kube-router overlay", without="no encapsulation, or vxlan"),
    _device("gre", "CONFIG_NET_IPGRE", "links by GRE", "ip_gre", without="vxlan"),
    _device("wireguard", "CONFIG_WIREGUARD", "flannel:wireguard", without="wireguard-go, a process"),
    _device("dummy", "CONFIG_DUMMY", "kube-proxy ipvs, node-local DNS", without="addresses on lo"),
    _device("macvlan", "CONFIG_MACVLAN", "macvlan"),
    _device("ipvlan", "CONFIG_IPVLAN", "ipvlan", without="veth and routes"),
    _device("vlan", "CONFIG_VLAN_8021Q", "trunked network cards", "8021q", without="macvlan"),
    _device("vrf", "CONFIG_NET_VRF", "routing per tenant", without="policy rules"),
    _device("netkit", "CONFIG_NETKIT, Linux 6.7", "cilium:netkit", builtin=True, without="veth and tc"),
    _device("ifb", "CONFIG_IFB", "shaping of what comes in", without="nft limit"),
    KernelFeature("tun", a.tun, "CONFIG_TUN", "relays in user space", ("tun",)),
    # queues
    _queue("netem", "CONFIG_NET_SCH_NETEM", "delay, jitter and loss on links", without="loss by nft; no delay"),
    _queue("htb", "CONFIG_NET_SCH_HTB", "bandwidth of links"),
    _queue("tbf", "CONFIG_NET_SCH_TBF", "bandwidth of links, bandwidth annotations"),
    _queue("fq", "CONFIG_NET_SCH_FQ", "pacing by departure time", without="tbf"),
    _queue("fq_codel", "CONFIG_NET_SCH_FQ_CODEL", "queue experiments"),
    _queue("cake", "CONFIG_NET_SCH_CAKE", "queue experiments"),
    _queue("clsact", "CONFIG_NET_SCH_INGRESS", "cilium", "sch_ingress"),
    # netfilter
    KernelFeature("nft", _nft("empty"), "CONFIG_NF_TABLES", "kube-proxy nftables", NFT),
    KernelFeature(
        "nft-nat",
        _nft("nat", "type nat hook postrouting priority 100; masquerade"),
        "CONFIG_NFT_NAT, CONFIG_NFT_MASQ",
        "kindnet, kube-proxy nftables, Felix nftables",
        NFT_NAT,
    ),
    KernelFeature(
        "nft-numgen",
        _nft("numgen", "numgen random mod 2 vmap { 0 : accept, 1 : drop }"),
        "CONFIG_NFT_NUMGEN",
        "kube-proxy nftables, loss on links without netem",
        (*NFT, "nft_numgen"),
    ),
    KernelFeature(
        "nft-fib",
        _nft("fib", "type filter hook prerouting priority 0; fib daddr type local accept"),
        "CONFIG_NFT_FIB_INET",
        "kindnet, kube-proxy nftables, Felix nftables",
        (*NFT, "nft_fib", "nft_fib_inet"),
    ),
    KernelFeature(
        "nft-queue",
        a.labelling_queue,
        "CONFIG_NFT_QUEUE, CONFIG_NETFILTER_NETLINK_QUEUE, CONFIG_NETFILTER_NETLINK_GLUE_CT",
        "kindnet's network policies",
        (*NFT, "nft_queue", "nft_ct", "nfnetlink_queue", "nf_conntrack_netlink"),
        without="nfqueue",
    ),
    KernelFeature(
        "nft-netdev",
        _nft("ingress", 'type filter hook ingress device "lo" priority 0', "netdev"),
        "CONFIG_NF_TABLES_NETDEV",
        "loss on links without netem",
        NFT,
    ),
    KernelFeature(
        "iptables",
        _iptables("iptables-restore"),
        "CONFIG_NF_TABLES and CONFIG_NFT_COMPAT, or CONFIG_IP_NF_IPTABLES",
        "flannel, calico, kube-proxy iptables",
        XT,
    ),
    KernelFeature(
        "iptables-nft",
        _iptables("iptables-nft-restore"),
        "CONFIG_NFT_COMPAT, CONFIG_NETFILTER_XTABLES",
        "flannel, calico, kube-proxy iptables",
        (*NFT, "nft_compat", *XT),
        without="iptables-legacy",
    ),
    KernelFeature(
        "iptables-legacy",
        a.iptables_legacy_table("nat"),
        "CONFIG_IP_NF_IPTABLES_LEGACY, CONFIG_IP_NF_NAT",
        "clusters of before 2019",
        ("ip_tables", "iptable_nat"),
        autoload=False,
        without="iptables-nft",
    ),
    KernelFeature(
        "connmark",
        _rule("-A PREROUTING -m addrtype --dst-type LOCAL --limit-iface-in -j CONNMARK --set-mark 0x1/0x1", "mangle"),
        "CONFIG_NETFILTER_XT_CONNMARK, CONFIG_NETFILTER_XT_MATCH_ADDRTYPE",
        "aws-vpc",
        ("xt_connmark", "xt_addrtype"),
    ),
    KernelFeature(
        "ttl-target",
        _rule("-A PREROUTING -j TTL --ttl-inc 1", "mangle"),
        "CONFIG_NETFILTER_XT_TARGET_HL",
        "aws-vpc: a fabric that is no hop",
        ("xt_HL",),
    ),
    KernelFeature(
        "nfqueue",
        a.both(_rule(_QUEUED, "mangle"), a.packet_queue),
        "CONFIG_NETFILTER_XT_TARGET_NFQUEUE, CONFIG_NETFILTER_NETLINK_QUEUE, CONFIG_NETFILTER_XT_MATCH_CONNLABEL",
        "kindnet's network policies where nftables has no queue",
        ("xt_NFQUEUE", "xt_connlabel", "xt_owner", "nfnetlink_queue"),
        without="no network policies under kindnet",
    ),
    # Two modules: the one of the set type is loaded with the set.
    KernelFeature(
        "ipset",
        a.program("ipset", "create", "trial", "hash:net"),
        "CONFIG_IP_SET",
        "calico, kube-router",
        ("ip_set", "ip_set_hash_net"),
        without="nft sets",
    ),
    KernelFeature("ipvs", a.ipvs, "CONFIG_IP_VS", "kube-proxy ipvs, kube-router", ("ip_vs", "ip_vs_rr", "xt_ipvs")),
    KernelFeature(
        "conntrack", a.conntrack, "CONFIG_NF_CT_NETLINK", "traces through NAT", ("nf_conntrack", "nf_conntrack_netlink")
    ),
    # routing
    KernelFeature("multipath", a.multipath, "CONFIG_IP_ROUTE_MULTIPATH", "several next hops by BGP"),
    KernelFeature("nexthop", a.nexthop_object, "Linux 5.3", "next hops as objects"),
    KernelFeature("policy-rules", a.policy_rule, "CONFIG_IP_MULTIPLE_TABLES", "routing tables per network card"),
    KernelFeature("ipv6", a.ipv6, "CONFIG_IPV6", "IPv6 and dual-stack clusters", ("ipv6",), without="IPv4 only"),
    # captures and eBPF
    KernelFeature("af_packet", a.packet_capture, "CONFIG_PACKET", "every capture", ("af_packet",)),
    KernelFeature(
        "bpf", a.bpf_program(BPF_PROG_TYPE_SCHED_CLS), "CONFIG_BPF_SYSCALL, CONFIG_NET_CLS_BPF", "cilium (as root)"
    ),
    KernelFeature("xdp", a.bpf_program(BPF_PROG_TYPE_XDP, answer=XDP_PASS), "CONFIG_BPF_SYSCALL", "cilium (as root)"),
    KernelFeature(
        "cgroup-bpf",
        a.bpf_program(BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_CGROUP_INET4_CONNECT, answer=1),
        "CONFIG_CGROUP_BPF",
        "cilium's socket load balancer (as root)",
        without="NAT by tc",
    ),
    KernelFeature("btf", a.path("/sys/kernel/btf/vmlinux"), "CONFIG_DEBUG_INFO_BTF", "cilium"),
)


PROGRAMS: tuple[Program, ...] = (
    Program("ip", "every lab", {"debian": "iproute2", "fedora": "iproute"}, ("-V",), "5.10"),
    Program("tc", "impairments of links", {"debian": "iproute2", "fedora": "iproute-tc"}, ("-V",), "5.10"),
    Program("mnexec", "every lab", {"debian": "mininet"}, ()),
    Program("iptables-restore", "flannel, calico", {"debian": "iptables", "fedora": "iptables-nft"}, least="1.8"),
    Program(
        "nft-program",
        "kindnet, loss on links, kube-proxy nftables, Felix nftables",
        {"debian": "nftables", "fedora": "nftables"},
        least="0.9.8",
        file="nft",
    ),
    Program(
        "ipset-program", "calico, kube-router", {"debian": "ipset", "fedora": "ipset"}, ("version",), "7", file="ipset"
    ),
    Program("bird", "calico, kube-router", {"debian": "bird2", "fedora": "bird"}, least="2.0"),
    Program(
        "wireguard-go",
        "flannel:wireguard where the kernel has none",
        {"debian": "wireguard-go"},
        (),
        optional=True,
    ),
    Program("tshark", "the tests", {"debian": "tshark", "fedora": "wireshark-cli"}, optional=True),
    Program("dig", "the tests of DNS", {"debian": "bind9-dnsutils", "fedora": "bind-utils"}, optional=True),
    Program(
        "cni-plugins",
        "conflist's examples, the tests",
        {"debian": "containernetworking-plugins", "fedora": "containernetworking-plugins"},
        (),
        optional=True,
        file="/usr/lib/cni/bridge",
    ),
    Program("wireshark", "captures on screen", {"debian": "wireshark", "fedora": "wireshark"}, optional=True),
)

_ENTRIES: tuple[KernelFeature | Program, ...] = (*KERNEL, *PROGRAMS)
BY_NAME: dict[str, KernelFeature | Program] = {entry.name: entry for entry in _ENTRIES}
