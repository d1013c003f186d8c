"""The names that kube-proxy gives to chains, sets and elements: a hash of what they are for, in base 32.

=========  ============================================  ==========================================
mode       hashed text                                   name
=========  ============================================  ==========================================
iptables   ``ns1/svc1:p80tcp``                           ``KUBE-SVC-XPGD46QRK7WJZT7O``
iptables   ``ns1/svc1:p80tcp10.180.0.1:80``              ``KUBE-SEP-SXIVWICOYRO3J4NJ``
nftables   ``ns1/svc1/tcp/p80``                          ``service-ULMVA6XW-ns1/svc1/tcp/p80``
nftables   ``ns1/svc1/tcp/p80__10.180.0.1/80``           ``endpoint-5OJB2KTY-ns1/svc1/tcp/p80__10.180.0.1/80``
=========  ============================================  ==========================================

Sources: kubernetes/kubernetes pkg/proxy/iptables/proxier.go (portProtoHash), pkg/proxy/nftables/proxier.go
(hashAndTruncate), pkg/proxy/types.go (ServicePortName).
"""

from __future__ import annotations

from base64 import b32encode
from hashlib import sha256

IPTABLES_HASH = 16  # characters: a chain's name has 28 at most
NFTABLES_HASH = 8
NFTABLES_LONGEST = 240  # characters of an nftables name after its prefix; a longer one is cut
_CUT = "..."


def port_name(service: str, port: str) -> str:
    """``ns1/svc1:p80``, as comments call a Service port; ``ns1/svc1`` for an unnamed one. ``service`` is its key."""
    return f"{service}:{port}" if port else service


def service_hash(name: str, protocol: str) -> str:
    """The iptables hash of a Service port: ``name`` as :func:`port_name` gives it, ``protocol`` in lower case."""
    return _hash(name + protocol)


def endpoint_chain(name: str, protocol: str, endpoint: str) -> str:
    """``KUBE-SEP-…``; ``endpoint`` is ``10.180.0.1:80`` or ``[fd00::1]:80``."""
    return f"KUBE-SEP-{_hash(name + protocol + endpoint)}"


def service_name(service: str, protocol: str, port: str) -> str:
    """The nftables name of a Service port without its prefix, ``ULMVA6XW-ns1/svc1/tcp/p80``; an unnamed port's ends
    with a slash."""
    return _named(f"{service}/{protocol}/{port}")


def endpoint_name(service: str, protocol: str, port: str, address: str, number: int) -> str:
    """The nftables name of an endpoint without its prefix. Names hold no colon, so IPv6 addresses have dots."""
    return _named(f"{service}/{protocol}/{port}__{address.replace(':', '.')}/{number}")


def _named(base: str) -> str:
    name = f"{b32encode(sha256(base.encode()).digest())[:NFTABLES_HASH].decode()}-{base}"
    return name if len(name) <= NFTABLES_LONGEST else name[: NFTABLES_LONGEST - len(_CUT)] + _CUT


def _hash(text: str) -> str:
    # Ten bytes are sixteen characters of base 32, without the rest of the digest.
    return b32encode(sha256(text.encode()).digest()[:10]).decode()
