"""Cluster DNS: what CoreDNS answers in a cluster, what the resolver behind it answers, and how pods ask."""
