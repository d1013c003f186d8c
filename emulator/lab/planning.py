"""Planning a lab's next step: the plan of its CNI style, and of what works beside that.

Pure: from one cluster and what was planned before to the next plan. Nothing here is in force yet.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from emulator.balancer.model import Balancer
from emulator.cluster.model import Cluster
from emulator.cluster.service_cluster import with_endpoints
from emulator.cni.service_proxy import Beside
from emulator.cni.style import Style
from emulator.plan.build import build
from emulator.plan.model import Plan
from emulator.policy.enforcement import Enforcement, enforce
from emulator.policy.enforcer import Enforcer
from emulator.proxy.model import Proxy


class Planned(NamedTuple):
    """A cluster, its plan, and what the next plan can take over from the making of this one."""

    cluster: Cluster
    plan: Plan
    enforcement: Enforcement | None = None  # None where nothing enforces policies
    proxy: Proxy | None = None  # the service proxy that runs, None where there is none (yet)


@dataclass(frozen=True)
class PlanMaker:
    """A lab's CNI style, and the service proxy, load balancer and policy enforcer beside it."""

    style: Style
    proxy: Beside | None
    balancer: Balancer | None
    enforcer: Enforcer | None
    wire_accurate: bool

    def check(self, cluster: Cluster) -> None:
        """Raises what the style, or the load balancer, has against a cluster."""
        self.style.check(cluster)
        if self.balancer is not None:
            self.balancer.check(cluster)

    def plan(self, cluster: Cluster, previous: Planned | None) -> Planned:
        """Plan a cluster, after the step before, if there was one. Raises ManifestError, Unsupported."""
        proxy = self.proxy.when(cluster) if self.proxy is not None else None
        enforcement = None
        if self.enforcer is not None:
            known = previous.enforcement if previous is not None else None
            # Policies are compiled step by step, each from the very cluster of the step before
            if known is not None and previous is not None and known.compiled.cluster is not previous.cluster:
                known = None
            enforcement = enforce(self.enforcer, cluster, known)
        plan = build(
            cluster,
            self.style,
            proxy=proxy,
            balancer=self.balancer,
            enforcer=enforcement,
            wire_accurate=self.wire_accurate,
            previous=(previous.cluster, previous.plan) if previous is not None else None,
            same_proxy=previous is None or proxy is previous.proxy,
        )
        return Planned(cluster, plan, enforcement, proxy)

    def with_endpoints(self, planned: Planned, before: Cluster, down: Collection[str]) -> Planned:
        """``planned`` with the endpoints that follow from pods and nodes as they are now; ``before`` is what the slices
        in its cluster were made of, ``down`` the nodes that are down."""
        cluster = planned.cluster
        fresh = with_endpoints(cluster, before, down=down)
        same = fresh.slices is cluster.slices and fresh.not_ready_nodes == cluster.not_ready_nodes
        if same or (fresh.slices is cluster.slices and self.balancer is None):
            return planned._replace(cluster=fresh)
        return self.plan(fresh, planned)

    def cleans_conntrack(self, planned: Planned) -> bool:
        """Whether the service proxy of what was planned last deletes the conntrack entries of endpoints that go."""
        return self.proxy is not None and planned.proxy is not None and self.proxy.settings.clean_conntrack
