"""What the platform team says about its cluster: namespace, nodes, fabric, storage, queue, image, security, limits.

Section by section the same kind of model as a recipe; a recipe says what to train, a profile where and under which rules.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from zerofleet.cluster.config import NonNegativeInt, PositiveFloat, PositiveInt, Section

GIB = 2**30

DnsLabel = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
Port = Annotated[int, Field(ge=1, le=65535)]
EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class Toleration(Section):
    key: str
    """Key of the taint."""
    operator: Literal["Exists", "Equal"] = "Exists"
    """`Equal` compares `value` too."""
    value: str | None = None
    """Value of the taint, with `operator: Equal`."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = "NoSchedule"
    """Effect of the taint."""


class HeadPool(Section):
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels of the nodes that the head may run on: CPU nodes, since it trains nothing."""
    tolerations: list[Toleration] = Field(default_factory=list)
    """Taints of these nodes that are tolerated."""
    cpus: PositiveInt = 4
    """CPU cores of the head pod: Ray's own processes, the driver, and the preparation of the data."""
    memory_gib: PositiveInt = 16
    """Memory of the head pod in GiB."""


class ScratchConfig(Section):
    size_gib: PositiveInt
    """Room in GiB that a worker pod may use of it."""
    storage_class: str | None = None
    """StorageClass that makes a volume on the node's own disks for the life of the pod (TopoLVM, local NVMe). Without one it is an emptyDir, on the disk of the kubelet."""
    host_path: Annotated[str, Field(pattern=r"^/[^\s:]+$")] | None = None
    """Folder of the node instead, such as where its NVMe disks are mounted. Breaks pod security `restricted` and `baseline`, must be writable for `security.run_as_user`, and nothing empties it."""


class WorkerPool(Section):
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels of the nodes that workers run on."""
    gpu_product: str | None = None
    """Value of the label `nvidia.com/gpu.product`, as NVIDIA's GPU feature discovery sets it."""
    tolerations: list[Toleration] = Field(default_factory=list)
    """Taints of these nodes that are tolerated."""
    gpus: NonNegativeInt = 0
    """GPUs of a node. A worker pod takes all of them."""
    gpu_resource: str = "nvidia.com/gpu"
    """Name of the GPUs as a resource."""
    cpus: PositiveInt
    """CPU cores of a node that pods can have (allocatable, less what daemons take). A worker pod takes all of them."""
    memory_gib: PositiveInt
    """Memory of a node that pods can have, in GiB. A worker pod takes all of it; /dev/shm counts against it."""
    ephemeral_storage_gib: NonNegativeInt = 0
    """Local disk that a worker pod asks for, in GiB; 0 asks for none."""
    scratch: ScratchConfig | None = None
    """Fast local disk of a worker, for the shards that `data.stream` fetches ahead. Without one they lie on the claim, which all nodes share."""
    max_nodes: NonNegativeInt = 0
    """Nodes of this pool; 0: not known."""
    runtime_class: str | None = None
    """Name of the RuntimeClass of worker pods, such as `nvidia`."""
    gpu_memory_gib: PositiveFloat | None = None
    """Memory of one GPU in GiB, for `plan`; `gpu_product` says it where it holds a size."""
    price_per_hour: PositiveFloat | None = None
    """Of one node, in whatever currency, for `plan`."""


class FabricConfig(Section):
    kind: Literal["tcp", "infiniband", "efa"] = "tcp"
    """Network between the ranks."""
    interface: str = "eth0"
    """Network device that NCCL and gloo use for sockets; an InfiniBand run opens its connections over it."""
    resource: str | None = None
    """Name of the fabric's devices as a resource, such as `rdma/ib` or `vpc.amazonaws.com/efa`."""
    devices: NonNegativeInt = 0
    """Devices of `resource` that a worker pod takes."""
    hugepages_2mi_gib: NonNegativeInt = 0
    """Memory in pages of 2 MiB that a worker pod takes, in GiB: libfabric's EFA provider needs some."""
    networks: str | None = None
    """Multus annotation `k8s.v1.cni.cncf.io/networks` of worker pods, for RDMA by SR-IOV."""
    hca: str | None = None
    """NCCL_IB_HCA: which adapters NCCL takes."""
    gid_index: NonNegativeInt | None = None
    """NCCL_IB_GID_INDEX, for RoCE."""
    ipc_lock: bool = False
    """Adds the capability IPC_LOCK, where the container runtime limits locked memory. Breaks pod security `restricted` and `baseline`."""
    rank_gb_per_s: PositiveFloat | None = None
    """Gigabytes per second that one rank sends to the others, for `plan`."""
    host_network: bool = False
    """Puts workers into their host's network. Breaks pod security `restricted` and `baseline`."""


class StorageConfig(Section):
    claim: DnsLabel | None = None
    """PersistentVolumeClaim that all pods mount: prepared data and caches lie there, and run folders where there is no `url`."""
    access_mode: Literal["ReadWriteMany", "ReadWriteOnce"] = "ReadWriteMany"
    """How the claim can be mounted: by many nodes or by one."""
    mount_path: Annotated[str, Field(pattern=r"^/[^\s:]+$")] = "/mnt/zerofleet"
    """Where pods mount the claim."""
    url: str | None = None
    """Object store that run folders lie in, such as `s3://bucket/runs`. Without one they lie on the claim."""
    secret: DnsLabel | None = None
    """Secret whose keys become environment variables (AWS_ACCESS_KEY_ID, ...)."""
    workload_identity: bool = False
    """The service account itself may use the object store (EKS, GKE and Azure annotate it): no `secret` is needed."""
    size_gib: NonNegativeInt = 0
    """Size in GiB of the claim that `k8s bootstrap` makes; 0: it makes none, the claim is there already."""
    storage_class: str | None = None
    """StorageClass of that claim; none: the cluster's default."""
    write_mb_per_s: PositiveFloat = 200.0
    """Megabytes per second that one node writes to storage, at least: the time of the last save is reckoned with it."""


class Topology(Section):
    mode: Literal["required", "preferred"] = "preferred"
    """Whether workers must, or should, be near each other."""
    level: str
    """Node label of one domain, such as `topology.kubernetes.io/zone`. Volcano: the highest tier, a number."""


class QueueConfig(Section):
    kind: Literal["none", "kueue", "volcano"] = "none"
    """What admits the job as a whole. With `none` pods start as nodes get free."""
    name: str | None = None
    """Kueue: the LocalQueue in this namespace. Volcano: the queue."""
    cluster_queue: str | None = None
    """Kueue: a ClusterQueue that is there already, for the LocalQueue that `k8s bootstrap` makes. Without one it makes a ClusterQueue too, whose quota are `workers.max_nodes` nodes."""
    priority_class: str | None = None
    """Kueue: the WorkloadPriorityClass. Volcano: the PriorityClass of all pods together."""
    topology: Topology | None = None
    """How near to each other workers are placed."""
    max_execution_s: PositiveInt | None = None
    """Kueue ends the job after so many seconds of running."""


class ImagesConfig(Section):
    image: str
    """The image of all pods: Ray, zerofleet and its ops. Pin a digest."""
    pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    """When nodes pull it."""
    pull_secrets: list[DnsLabel] = Field(default_factory=list)
    """Secrets with the registry's credentials."""
    ray_version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")] = "2.60.0"
    """Version of Ray in the image."""


class SecretVariable(Section):
    variable: EnvName
    """Environment variable of head and workers, such as WANDB_API_KEY."""
    secret: DnsLabel
    """Secret that holds its value."""
    key: str
    """Key in the secret."""


class SecurityConfig(Section):
    pod_security: Literal["restricted", "baseline", "privileged"] = "restricted"
    """Pod security level that the namespace enforces."""
    run_as_user: NonNegativeInt | None = 1000
    """User id of all containers; none leaves it to the namespace (OpenShift)."""
    fs_group: NonNegativeInt | None = 1000
    """Group id that owns mounted volumes; none leaves it to the namespace (OpenShift)."""
    service_account: DnsLabel | None = None
    """ServiceAccount of all pods; it needs no rights. Without one, the namespace's default."""
    submitter_groups: list[str] = Field(default_factory=list)
    """Groups of users, as the API server knows them, that `k8s bootstrap` lets submit. Without any its Role is bound to nobody."""
    auth: Literal["token", "disabled"] = "token"
    """Whether Ray asks for a token. KubeRay makes it and gives it to the pods."""
    auth_secret: DnsLabel | None = None
    """Secret with a token of your own in key `auth_token`, instead of one that KubeRay makes."""
    tls: bool = False
    """Ray's own traffic encrypted with certificates of cert-manager: alpha in KubeRay 1.7."""


class DeletionRule(Section):
    policy: Literal["DeleteWorkers", "DeleteCluster", "DeleteSelf", "DeleteNone"]
    """What is deleted."""
    job_status: Literal["SUCCEEDED", "FAILED"] | None = None
    """Status of the Ray job that the rule is for; either this or `deployment_failed`."""
    deployment_failed: bool = False
    """Whether the rule is for a job that failed as a whole."""
    ttl_s: NonNegativeInt = 0
    """Seconds from the end of the job."""


class LifecycleConfig(Section):
    shutdown_after_finish: bool = True
    """Delete the pods when the job has ended."""
    ttl_s: NonNegativeInt = 300
    """Seconds that the pods stay after the end, for a look at them."""
    deletion_rules: list[DeletionRule] = Field(default_factory=list)
    """KubeRay's finer rules, instead of the two above."""
    retries: NonNegativeInt = 2
    """How often KubeRay starts the job again, with new pods, after it failed. The run goes on from its newest checkpoint."""
    active_deadline_s: PositiveInt | None = None
    """Seconds after which the job is ended whatever it does."""
    pre_running_deadline_s: PositiveInt | None = 1800
    """Seconds within which the job must have begun to run (pods placed, images pulled)."""
    autoscaling: bool = False
    """Ray's autoscaler makes pods between cluster.min_nodes and cluster.nodes. A job of fixed size needs none."""


class LimitsConfig(Section):
    drain_s: PositiveInt = 60
    """Seconds for the step that is under way to end, and for the commit, when a pod is to go."""
    termination_grace_s: PositiveInt | Literal["auto"] = "auto"
    """Seconds that a pod has to end; `auto` is `drain_s`, the time of a save and 15 s for Ray, in full half minutes."""
    shm_gib: PositiveFloat | Literal["auto"] = "auto"
    """Size of a worker's /dev/shm in GiB; `auto` holds as many snapshots as the node's memory allows."""
    object_store_gib: PositiveFloat = 1.0
    """Ray's object store in GiB, a part of /dev/shm: zerofleet sends no data through it."""
    disruption_budget: bool = True
    """A PodDisruptionBudget that lets no pod be evicted. It holds up the drain of a node until the job has ended."""


class MonitoringConfig(Section):
    port: Annotated[int, Field(ge=0, le=65535)] = 8090
    """Port of the head pod at which the run's driver answers Prometheus; 0: it does not."""
    prometheus_namespace: DnsLabel = "monitoring"
    """Namespace that Prometheus runs in: the network lets it reach the ports for metrics."""
    prometheus_operator: bool = False
    """The cluster has the Prometheus operator: `k8s bootstrap` writes a PodMonitor, rules and a dashboard for it."""
    monitor_labels: dict[str, str] = Field(default_factory=lambda: {"release": "prometheus"})
    """Labels of the PodMonitor and of the rules, by which the Prometheus operator takes them up."""
    dashboard_labels: dict[str, str] = Field(default_factory=lambda: {"grafana_dashboard": "1"})
    """Labels of the dashboard's ConfigMap, by which Grafana's sidecar takes it up."""
    scrape_interval_s: PositiveInt = 15
    """Seconds between two scrapes."""
    durable_age_s: PositiveInt = 3600
    """Somebody is paged when nothing of a run has become durable for so many seconds."""
    runbook_url: str = "docs/operations.md"
    """Where the alerts send whoever is paged: the place of docs/operations.md in your wiki; a section of it is added."""


class Peer(Section):
    cidr: str | None = None
    """Addresses, such as `10.0.8.0/24`; either this or `namespace`."""
    namespace: DnsLabel | None = None
    """All pods of this namespace, such as that of a store inside the cluster."""
    ports: list[Port] = Field(default_factory=list)
    """Ports of the peer; none named: all."""
    protocol: Literal["TCP", "UDP"] = "TCP"
    """Protocol of these ports."""


class NetworkConfig(Section):
    egress: list[Peer] = Field(default_factory=list)
    """What pods may reach outside of their namespace besides DNS: the object store, wandb, the hub. Images and volumes are the nodes' business."""
    node_cidrs: list[str] = Field(default_factory=list)
    """Addresses of the nodes: workers speak from them with `fabric.host_network`."""


class OperatorConfig(Section):
    namespace: DnsLabel = "kuberay-operator"
    """Namespace that the operator runs in: it asks the head about the job."""
    version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")] = "1.7.0"
    """Version of the KubeRay operator."""
    feature_gates: list[str] = Field(default_factory=list)
    """Alpha feature gates that are on, such as `RayClusterMTLS`."""


class Profile(Section):
    namespace: DnsLabel
    """Namespace of everything that is rendered."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels of all objects and pods, such as the team or the cost centre."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables of head and workers. Nothing secret: it can be read in the job."""
    secret_env: list[SecretVariable] = Field(default_factory=list)
    """Environment variables of head and workers whose values lie in secrets."""
    operator: OperatorConfig = OperatorConfig()
    """The KubeRay operator of the cluster."""
    images: ImagesConfig
    """The image and its registry."""
    head: HeadPool = HeadPool()
    """Nodes for the head."""
    workers: WorkerPool
    """Nodes for the workers: one pod takes a whole node."""
    fabric: FabricConfig = FabricConfig()
    """Network between the workers."""
    storage: StorageConfig
    """Run folders, prepared data and caches."""
    queue: QueueConfig = QueueConfig()
    """Who admits the job."""
    network: NetworkConfig = NetworkConfig()
    """What pods may reach, for the NetworkPolicies of `k8s bootstrap`."""
    security: SecurityConfig = SecurityConfig()
    """Pod security, service account, Ray's token."""
    lifecycle: LifecycleConfig = LifecycleConfig()
    """Retries, deadlines, and what happens to pods at the end."""
    monitoring: MonitoringConfig = MonitoringConfig()
    """Metrics of the runs, alerts, dashboard; docs/metrics.md."""
    limits: LimitsConfig = LimitsConfig()
    """Grace period, shared memory, disruption budget."""
