"""Every mistake that lint knows, each made on purpose: found, with its reason and a remedy; and none where there is none."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tests.k8s.support import CPU, H100, PROFILES, changed_profile, workload
from zerofleet.k8s.lint import lint
from zerofleet.launch.workload import load_profile

REMEDY = re.compile(
    r"\b(set|use|remove|give|call|shorten|rename|change|pin|add|raise|lower|keep|name|upgrade|put|correct|enlarge|turn|make|take|"
    r"reserve|let|must allow)\b",
    re.IGNORECASE,
)
WORKER = {"policy": "DeleteWorkers", "job_status": "FAILED", "ttl_s": 60}
CLUSTER = {"policy": "DeleteCluster", "job_status": "FAILED", "ttl_s": 10}

MISTAKES = [
    # names, labels, image, versions
    (CPU, [], {"labels__ray.io/cluster": "x"}, "error: labels.ray.io/cluster: labels of this prefix"),
    (CPU, [], {"labels__kueue.x-k8s.io/queue-name": "x"}, "error: labels.kueue.x-k8s.io/queue-name: labels of this"),
    (CPU, [], {"labels__team": "a b"}, "error: labels.team: 'a b' is no label's value"),
    (CPU, [], {"labels__the team": "a"}, "error: labels.the team: it is no label's key"),
    (CPU, ["run.name=1st"], {}, "error: run.name: '1st' is no DNS label"),
    (CPU, ["run.name=a.b_c"], {}, "error: run.name: 'a.b_c' is no DNS label"),
    (CPU, ["run.name=null"], {}, "error: run.name: it is not set"),
    (CPU, [], {"images__image": "host:5000/zerofleet"}, "error: images.image: host:5000/zerofleet has neither tag"),
    (CPU, [], {"images__image": "zerofleet:latest"}, "error: images.image: `latest` is another image tomorrow"),
    (CPU, [], {"images__image": "zerofleet:0.3"}, "warning: images.image: the tag '0.3' can be moved"),
    (
        CPU,
        [],
        {"images__ray_version": "2.59.0"},
        "error: images.ray_version: it is 2.59.0 and zerofleet runs on Ray 2.60.0",
    ),
    (CPU, [], {"images__ray_version": "2.51.0"}, "error: security.auth: Ray 2.51.0 knows no token"),
    (CPU, [], {"operator__version": "1.5.0"}, "error: operator.version: KubeRay 1.5.0 knows no `authOptions`"),
    (CPU, [], {"operator__version": "1.5.1"}, "error: lifecycle.pre_running_deadline_s: KubeRay 1.5.1 knows no"),
    (
        CPU,
        [],
        {"operator__version": "1.5.1", "lifecycle__deletion_rules": [CLUSTER]},
        "error: lifecycle.deletion_rules: before KubeRay 1.6 they need its alpha gate",
    ),
    # nodes
    (
        CPU,
        ["cluster.gpus_per_rank=1"],
        {},
        "error: cluster.gpus_per_rank: it is 1 and the profile's workers have no GPUs",
    ),
    (H100, ["cluster.ranks_per_node=4"], {}, "error: cluster.ranks_per_node: it is 4 and a node has 8 GPUs"),
    (
        H100,
        ["cluster.gpus_per_rank=0"],
        {},
        "error: cluster.gpus_per_rank: it is 0, and each worker pod would take the 8",
    ),
    (H100, ["cluster.nodes=17"], {}, "error: cluster.nodes: it is 17 and the pool has 16 nodes"),
    (
        H100,
        [],
        {"workers__gpu_resource": "nvidia.com/mig-1g.5gb"},
        "error: workers.gpu_resource: KubeRay tells Ray of GPUs",
    ),
    (CPU, ["cluster.cpus_per_rank=3"], {}, "error: cluster.cpus_per_rank: 2 ranks with 3 cores each need 6"),
    (
        CPU,
        [],
        {"limits__shm_gib": 20},
        "error: limits.shm_gib: /dev/shm would have 20.0 GiB and the worker's memory limit",
    ),
    (CPU, [], {"limits__shm_gib": 1.2}, "error: limits.shm_gib: two snapshots, Ray's object store"),
    (CPU, [], {"limits__object_store_gib": 0.05}, "error: limits.object_store_gib: it is 0.05, and Ray does not start"),
    (CPU, [], {"limits__object_store_gib": 5}, "error: limits.object_store_gib: it is 5 and the head has 8 GiB"),
    (CPU, ["model.config.hidden_size=4096"], {}, "warning: workers.memory_gib: two snapshots of"),
    (CPU, ["model.config.hidden_size=4096"], {}, "warning: workers.memory_gib: ranks and Ray need about"),
    (
        CPU,
        ["model.config.model_type=bert"],
        {},
        "error: model.config: the number of the model's parameters is not known",
    ),
    (
        CPU,
        [],
        {"workers__tolerations": [{"key": "a"}]},
        "error: workers.tolerations: a toleration lets pods onto tainted",
    ),
    (CPU, [], {"head__tolerations": [{"key": "a"}]}, "error: head.tolerations: a toleration lets pods onto tainted"),
    (H100, [], {"head__tolerations": [{"key": "nvidia.com/gpu"}]}, "error: head.tolerations: the head trains nothing"),
    (H100, [], {"workers__tolerations": [{"key": "a", "operator": "Equal"}]}, "operator Equal needs a value"),
    (H100, [], {"workers__tolerations": [{"key": "a", "value": "b"}]}, "operator Exists takes no value"),
    (H100, [], {"workers__tolerations": []}, "warning: workers.tolerations: GPU nodes usually have the taint"),
    (
        H100,
        [],
        {"workers__node_selector__nvidia.com/gpu.product": "A100"},
        "error: workers.gpu_product: it is NVIDIA-H100",
    ),
    (CPU, [], {"workers__gpu_product": "A100"}, "error: workers.gpu_product: it names a GPU and workers.gpus is 0"),
    (
        CPU,
        [],
        {"workers__scratch": {"size_gib": 9}},
        "error: workers.ephemeral_storage_gib: an emptyDir of 9 GiB is a part of it",
    ),
    (
        CPU,
        ["data.files=[]", "data.stream.url=s3://bucket/corpus"],
        {"workers__scratch": {"size_gib": 9, "storage_class": "topolvm"}},
        "error: workers.scratch.size_gib: it is 9 and data.stream.max_bytes=68719476736 (64.0 GiB)",
    ),
    (
        CPU,
        [],
        {"workers__scratch": {"size_gib": 9, "host_path": "/mnt/nvme"}},
        "error: workers.scratch.host_path: a namespace with pod security `restricted` refuses the workers",
    ),
    (
        CPU,
        [],
        {"workers__scratch": {"size_gib": 9, "storage_class": "a", "host_path": "/b"}},
        "error: workers.scratch: it names a StorageClass and a folder",
    ),
    (
        CPU,
        ["data.files=[]", "data.stream.url=s3://bucket/corpus"],
        {"workers__scratch": {"size_gib": 64, "storage_class": "topolvm"}},
        "or its disk full. Raise it to 72, or lower data.stream.max_bytes",
    ),
    (
        CPU,
        [],
        {"workers__scratch": {"size_gib": 9, "host_path": "/mnt/nvme"}},
        "warning: workers.scratch.host_path: Kubernetes changes no owner",
    ),
    (
        CPU,
        [],
        {"workers__scratch": {"size_gib": 9, "storage_class": "a"}, "storage__mount_path": "/mnt/scratch"},
        "error: storage.mount_path: /mnt/scratch would cover /mnt/scratch",
    ),
    # fabric
    (CPU, [], {"fabric__hca": "mlx5"}, "error: fabric.hca: it has no effect with fabric.kind=tcp"),
    (H100, [], {"fabric__devices": 0}, "error: fabric.resource: infiniband needs devices in the pod"),
    (H100, ["cluster.gpus_per_rank=0"], {}, "error: fabric.kind: infiniband carries NCCL's traffic"),
    (H100, [], {"fabric__kind": "efa"}, "error: fabric.hugepages_2mi_gib: libfabric's EFA provider"),
    (
        H100,
        [],
        {"fabric__kind": "efa", "fabric__hugepages_2mi_gib": 5},
        "error: fabric.hca: NCCL_IB_* are for InfiniBand",
    ),
    # queue, deletion, autoscaling, deadlines, grace
    (CPU, [], {"queue__name": "a"}, "error: queue.name: it has no effect with queue.kind=none"),
    (CPU, [], {"queue__kind": "kueue"}, "error: queue.name: kueue takes a job only by the name of its queue"),
    (H100, [], {"queue__name": "My Queue"}, "error: queue.name: 'My Queue' is no name of an object"),
    (H100, [], {"queue__topology__level": "2"}, "error: queue.topology.level: it is 2, a tier of Volcano"),
    (
        H100,
        [],
        {"queue__kind": "volcano"},
        "error: queue.topology.level: it is 'topology.kubernetes.io/rack'; Volcano knows",
    ),
    (
        H100,
        [],
        {"queue__kind": "volcano", "queue__max_execution_s": 60},
        "error: queue.max_execution_s: only Kueue reads it",
    ),
    (H100, [], {"lifecycle__deletion_rules": [CLUSTER]}, "error: lifecycle.deletion_rules: Kueue's webhook wants"),
    (
        H100,
        [],
        {"lifecycle__shutdown_after_finish": False},
        "error: lifecycle.shutdown_after_finish: Kueue's webhook refuses",
    ),
    (
        CPU,
        [],
        {"lifecycle__shutdown_after_finish": False},
        "warning: lifecycle.shutdown_after_finish: it is false: pods",
    ),
    (
        CPU,
        [],
        {"lifecycle__shutdown_after_finish": False, "lifecycle__ttl_s": 5},
        "error: lifecycle.ttl_s: KubeRay refuses a ttl without shutdown_after_finish",
    ),
    (
        CPU,
        [],
        {"lifecycle__deletion_rules": [CLUSTER], "lifecycle__ttl_s": 5},
        "error: lifecycle.ttl_s: KubeRay refuses it beside deletion rules",
    ),
    (
        CPU,
        [],
        {"lifecycle__deletion_rules": [CLUSTER], "lifecycle__shutdown_after_finish": True},
        "error: lifecycle.shutdown_after_finish: KubeRay refuses it beside deletion rules",
    ),
    (
        CPU,
        [],
        {"lifecycle__deletion_rules": [{"policy": "DeleteSelf"}]},
        "error: lifecycle.deletion_rules.0: KubeRay wants exactly",
    ),
    (
        CPU,
        [],
        {"lifecycle__deletion_rules": [{**CLUSTER, "deployment_failed": True}]},
        "error: lifecycle.deletion_rules.0: KubeRay wants exactly one condition",
    ),
    (
        CPU,
        [],
        {"lifecycle__deletion_rules": [CLUSTER, {**CLUSTER, "ttl_s": 20}]},
        "DeleteCluster is there already for this",
    ),
    (
        CPU,
        [],
        {"lifecycle__deletion_rules": [WORKER, CLUSTER]},
        "DeleteWorkers after 60 s comes later than DeleteCluster",
    ),
    (
        CPU,
        ["cluster.nodes=2", "cluster.min_nodes=1"],
        {"lifecycle__deletion_rules": [WORKER], "lifecycle__autoscaling": True},
        "error: lifecycle.deletion_rules.0: KubeRay refuses DeleteWorkers with autoscaling",
    ),
    (
        CPU,
        [],
        {"lifecycle__autoscaling": True},
        "error: lifecycle.autoscaling: the job has 1 nodes at least and at most",
    ),
    (
        H100,
        ["cluster.min_nodes=1"],
        {"lifecycle__autoscaling": True},
        "error: lifecycle.autoscaling: Kueue refuses Ray's",
    ),
    (
        CPU,
        ["cluster.nodes=2", "cluster.min_nodes=1"],
        {"lifecycle__autoscaling": True, "queue__kind": "volcano", "queue__name": "q"},
        "error: lifecycle.autoscaling: Volcano's gang",
    ),
    (
        CPU,
        [],
        {"lifecycle__active_deadline_s": 600},
        "error: lifecycle.active_deadline_s: it is 600 and the job may take 1800",
    ),
    (
        CPU,
        [],
        {"queue__kind": "volcano", "queue__name": "q"},
        "warning: lifecycle.pre_running_deadline_s: under Volcano the time in the queue counts",
    ),
    (CPU, [], {"lifecycle__pre_running_deadline_s": None}, "warning: lifecycle.pre_running_deadline_s: without it"),
    (
        CPU,
        [],
        {"limits__termination_grace_s": 30},
        "error: limits.termination_grace_s: it is 30 s and the last save takes 76 s",
    ),
    (CPU, [], {"storage__write_mb_per_s": 0.1}, "warning: limits.termination_grace_s: it is 870 s"),
    # security
    (
        H100,
        [],
        {"fabric__ipc_lock": True},
        "error: fabric.ipc_lock: a namespace with pod security `restricted` refuses",
    ),
    (
        H100,
        [],
        {"fabric__ipc_lock": True, "security__pod_security": "privileged"},
        "error: fabric.ipc_lock: the containers run as user 1000",
    ),
    (
        H100,
        [],
        {"fabric__host_network": True, "security__pod_security": "baseline"},
        "error: fabric.host_network: a namespace with pod security `baseline` refuses",
    ),
    (CPU, [], {"security__run_as_user": 0}, "error: security.run_as_user: a namespace with pod security `restricted`"),
    (H100, [], {}, "warning: fabric.kind: infiniband locks memory"),
    (CPU, [], {"security__auth": "disabled"}, "warning: security.auth: without a token whoever reaches"),
    (
        CPU,
        [],
        {"security__auth": "disabled", "security__auth_secret": "a"},
        "error: security.auth_secret: it has no effect",
    ),
    (CPU, [], {"security__tls": True}, "error: security.tls: KubeRay refuses tlsOptions unless its alpha gate"),
    (CPU, [], {"security__service_account": None}, "warning: security.service_account: pods would run under"),
    (CPU, [], {"env__MY_TOKEN": "x"}, "error: env.MY_TOKEN: by its name it is a secret"),
    (CPU, [], {"env__HF_HOME": "/x"}, "error: env.HF_HOME: zerofleet or KubeRay sets this variable"),
    (CPU, [], {"env__ZEROFLEET_NODE": "x"}, "error: env.ZEROFLEET_NODE: zerofleet or KubeRay sets this variable"),
    (CPU, [], {"env__RAY_AUTH_TOKEN": "x"}, "error: env.RAY_AUTH_TOKEN: zerofleet or KubeRay sets this variable"),
    (CPU, [], {"env__RAY_enable_autoscaler_v2": "1"}, "error: env.RAY_enable_autoscaler_v2: zerofleet or KubeRay sets"),
    (
        CPU,
        [],
        {"secret_env": [{"variable": "RAY_AUTH_TOKEN", "secret": "s", "key": "k"}]},
        "error: secret_env.0: RAY_AUTH_TOKEN: zerofleet or KubeRay sets this variable",
    ),
    (
        CPU,
        [],
        {"env__A": "1", "secret_env": [{"variable": "A", "secret": "s", "key": "k"}]},
        "error: secret_env: A is set 2 times",
    ),
    (H100, [], {"storage__secret": None}, "error: storage.secret: an object store (s3) needs credentials"),
    (CPU, ["tracking.wandb.enabled=true"], {}, "error: secret_env: tracking.wandb is on and no secret"),
    (CPU, ["data.files=[s3://key:word@bucket/a.jsonl]"], {}, "error: data.files.0: the URL holds credentials"),
    (CPU, ["run.storage=s3://key:word@bucket/runs"], {}, "error: run.storage: the URL holds credentials"),
    # storage
    (CPU, [], {"storage__claim": None, "storage__url": "s3://a/b"}, "error: storage.claim: the head prepares the data"),
    (CPU, [], {"storage__access_mode": "ReadWriteOnce"}, "error: storage.access_mode: ReadWriteOnce is mounted by one"),
    (CPU, [], {"storage__mount_path": "/dev/shm"}, "error: storage.mount_path: /dev/shm would cover /dev"),
    (CPU, [], {"storage__mount_path": "/tmp"}, "error: storage.mount_path: /tmp would cover /tmp/ray"),
    (CPU, ["run.storage=s3://mine/runs"], {}, "error: storage.secret: an object store (s3) needs credentials"),
    (CPU, ["run.storage=file:///home/me/runs"], {}, "error: run.storage: /home/me/runs is a path of this machine"),
    (CPU, ["run.storage=/home/me/runs"], {}, "error: run.storage: /home/me/runs is a path of this machine"),
    (CPU, ["data.files=[/home/me/*.txt]"], {}, "error: data.files.0: /home/me/*.txt is a path of this machine"),
    (CPU, ["data.cache=/tmp/cache"], {}, "error: data.cache: /tmp/cache is a path of this machine"),
    (
        CPU,
        ["data.files=[]", "data.stream.url=/home/me/corpus"],
        {},
        "error: data.stream.url: /home/me/corpus is a path of this machine",
    ),
    (
        CPU,
        ["data.tokenizer=/home/me/t", "model.config.vocab_size=9"],
        {},
        "error: data.tokenizer: /home/me/t is a path",
    ),
]


def found(path, overrides, changes) -> list[str]:
    profile = changed_profile(path, **changes)
    return [str(finding) for finding in lint(profile, workload(path, *overrides, profile=profile))]


@pytest.mark.parametrize(("path", "overrides", "changes", "expected"), MISTAKES, ids=[m[3][:60] for m in MISTAKES])
def test_a_mistake_is_found_with_its_remedy(path, overrides, changes, expected):
    lines = [line for line in found(path, overrides, changes) if expected in line]
    assert len(lines) == 1, found(path, overrides, changes)
    assert REMEDY.search(lines[0].partition(expected)[2] or lines[0]), lines[0]


def test_there_are_at_least_25_mistakes_of_different_kinds():
    assert len({expected for _, _, _, expected in MISTAKES if expected.startswith("error")}) >= 25


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_the_example_profiles_are_right(path):
    profile = load_profile(path)
    assert [f for f in lint(profile, workload(path)) if f.level == "error"] == []


def test_a_name_from_which_kuberay_could_not_make_others():
    first = workload(CPU)
    profile = load_profile(CPU)
    assert lint(profile, replace(first, name="a" * 47)) == []
    lines = [str(finding) for finding in lint(profile, replace(first, name="a" * 50))]
    assert len(lines) == 1 and "has 50 characters" in lines[0] and "shorten it by 3" in lines[0]


def test_a_fitting_name_is_proposed():
    assert "call it 'a-b-c'" in found(CPU, ["run.name=a.b_c"], {})[0]
    assert "call it 'run-1st'" in found(CPU, ["run.name=1st"], {})[0]


def test_errors_come_first():
    levels = [line.partition(":")[0] for line in found(H100, [], {"images__image": "a:latest"})]
    assert levels == ["error", "warning"]


def test_files_on_the_claim_and_urls_are_right():
    overrides = ["data.files=[/mnt/zerofleet/data/*.txt,s3://bucket/a.jsonl]", "run.storage=/mnt/zerofleet/mine"]
    assert found(CPU, overrides, {}) == []


def test_what_needs_the_alpha_gate_passes_with_it():
    changes = {"security__tls": True, "operator__feature_gates": ["RayClusterMTLS"]}
    assert found(CPU, [], changes) == []


def test_rules_in_their_order_pass():
    rules = [{**WORKER, "ttl_s": 5}, CLUSTER, {"policy": "DeleteSelf", "deployment_failed": True, "ttl_s": 1}]
    assert found(CPU, [], {"lifecycle__deletion_rules": rules}) == []


def test_a_secret_in_secret_env_and_an_identity_are_credentials():
    keys = [{"variable": "AWS_SECRET_ACCESS_KEY", "secret": "s", "key": "k"}]
    for changes in ({"secret_env": keys}, {"storage__workload_identity": True}):
        lines = found(H100, [], {"storage__secret": None, **changes})
        assert not [line for line in lines if "storage.secret" in line]
    wandb = [{"variable": "WANDB_API_KEY", "secret": "s", "key": "k"}]
    assert [
        line for line in found(H100, [], {"storage__secret": None, "secret_env": wandb}) if "storage.secret" in line
    ]
