"""A Kubernetes cluster for tests: a real control plane (../shared/kube), and stand-ins for the kubelet and for KubeRay's operator.

Real: API server, etcd, scheduler, garbage collector, job controller; Ray, and every process of a pod. Not real: images (a pod
has this machine's files), limits, probes, DNS, volumes other than ConfigMaps, memory and claims (a claim is a folder).
"""
