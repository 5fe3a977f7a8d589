"""Where the objects of a run are in the API: their kinds as paths."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """A kind of the API. `group` is empty for the core's."""

    group: str
    version: str
    plural: str
    name: str

    def path(self, namespace: str, name: str = "", sub: str = "") -> str:
        """Of all objects in a namespace, of one, or of a subresource of one."""
        return "/".join(part for part in (f"{self.root}/namespaces/{namespace}/{self.plural}", name, sub) if part)

    def cluster_path(self, name: str = "") -> str:
        """Of all objects that belong to no namespace, or of those in all namespaces; with a name, of one of the former."""
        return f"{self.root}/{self.plural}" + (f"/{name}" if name else "")

    @property
    def root(self) -> str:
        """Of the kind's group and version: what it answers is the list of its kinds."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version


RAY_JOB = Kind("ray.io", "v1", "rayjobs", "RayJob")
RAY_CLUSTER = Kind("ray.io", "v1", "rayclusters", "RayCluster")
CONFIG_MAP = Kind("", "v1", "configmaps", "ConfigMap")
BUDGET = Kind("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
POD = Kind("", "v1", "pods", "Pod")
EVENT = Kind("", "v1", "events", "Event")
CLAIM = Kind("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim")
SECRET = Kind("", "v1", "secrets", "Secret")
SERVICE_ACCOUNT = Kind("", "v1", "serviceaccounts", "ServiceAccount")
NAMESPACE = Kind("", "v1", "namespaces", "Namespace")
LOCAL_QUEUE = Kind("kueue.x-k8s.io", "v1beta2", "localqueues", "LocalQueue")
CLUSTER_QUEUE = Kind("kueue.x-k8s.io", "v1beta2", "clusterqueues", "ClusterQueue")
WORKLOAD_PRIORITY = Kind("kueue.x-k8s.io", "v1beta2", "workloadpriorityclasses", "WorkloadPriorityClass")
VOLCANO_QUEUE = Kind("scheduling.volcano.sh", "v1beta1", "queues", "Queue")
PRIORITY = Kind("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass")
RUNTIME = Kind("node.k8s.io", "v1", "runtimeclasses", "RuntimeClass")
STORAGE_CLASS = Kind("storage.k8s.io", "v1", "storageclasses", "StorageClass")
POD_MONITOR = Kind("monitoring.coreos.com", "v1", "podmonitors", "PodMonitor")
NODE = Kind("", "v1", "nodes", "Node")
DEPLOYMENT = Kind("apps", "v1", "deployments", "Deployment")
WORKLOAD = Kind("kueue.x-k8s.io", "v1beta2", "workloads", "Workload")
POD_GROUP = Kind("scheduling.volcano.sh", "v1beta1", "podgroups", "PodGroup")

KINDS = {kind.name: kind for kind in (RAY_JOB, RAY_CLUSTER, CONFIG_MAP, BUDGET, POD, EVENT, CLAIM, WORKLOAD, POD_GROUP)}
