"""Service proxies: kube-proxy's modes, each a function from Services and endpoints to the rules of one node."""
