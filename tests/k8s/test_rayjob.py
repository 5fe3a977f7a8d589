"""What is rendered: accepted by the API server's own rules, sized by closed forms, in agreement with the recipe."""

from __future__ import annotations

import copy
import importlib
import json

import pytest
import yaml

from tests.k8s.crds import needs_crds, refusals
from tests.k8s.restricted import violations
from tests.k8s.support import CPU, H100, PROFILES, RECIPES, changed_profile, job_for, pods_of, rendered, workload
from zerofleet.k8s import containers
from zerofleet.k8s.lint import lint
from zerofleet.k8s.names import STAY
from zerofleet.k8s.to_yaml import to_yaml
from zerofleet.k8s.workload import GIB, grace_s, needed_grace_s
from zerofleet.launch.config import parse_job
from zerofleet.launch.workload import load_profile, workload_of
from zerofleet.trainer import node_name

ELASTIC = ["cluster.nodes=2", "cluster.min_nodes=1"]
RULES = [
    {"policy": "DeleteCluster", "job_status": "FAILED", "ttl_s": 10},
    {"policy": "DeleteSelf", "deployment_failed": True},
]
STREAM = ["data.files=[]", "data.stream.url=s3://bucket/corpus"]
VARIANTS = {
    "volcano": (
        H100,
        [],
        {
            "queue": {
                "kind": "volcano",
                "name": "q",
                "priority_class": "p",
                "topology": {"mode": "required", "level": "1"},
            }
        },
    ),
    "kueue": (H100, [], {"queue__priority_class": "p", "queue__max_execution_s": 60}),
    "efa": (
        H100,
        [],
        {"fabric": {"kind": "efa", "resource": "vpc.amazonaws.com/efa", "devices": 32, "hugepages_2mi_gib": 5}},
    ),
    "roce": (H100, [], {"fabric__networks": "rdma-net", "fabric__gid_index": 3, "workers__runtime_class": "nvidia"}),
    "near": (CPU, [], {"queue__topology": {"level": "topology.kubernetes.io/zone"}}),
    "nearer": (CPU, [], {"queue__topology": {"level": "rack", "mode": "required"}}),
    "autoscaling": (CPU, ELASTIC, {"lifecycle__autoscaling": True}),
    "deletion": (CPU, [], {"lifecycle__deletion_rules": RULES}),
    "openshift": (CPU, [], {"security__run_as_user": None, "security__fs_group": None}),
    "tls": (
        CPU,
        [],
        {"security__tls": True, "operator__feature_gates": ["RayClusterMTLS"], "security__auth_secret": "t"},
    ),
    "deadlines": (CPU, [], {"lifecycle__active_deadline_s": 7200, "limits__disruption_budget": False}),
    "scratch": (CPU, STREAM, {"workers__scratch": {"size_gib": 100}, "workers__ephemeral_storage_gib": 120}),
    "local-volume": (CPU, STREAM, {"workers__scratch": {"size_gib": 100, "storage_class": "topolvm"}}),
    "env": (CPU, [], {"env__A": "1e3", "env__B": "no", "storage__url": "s3://a/b", "storage__secret": "s"}),
}
"""Every branch of what is rendered."""


def variant(name: str):
    path, overrides, changes = VARIANTS[name]
    profile = changed_profile(path, **changes)
    return profile, workload(path, *overrides, profile=profile)


NEEDS_GPUS = ("llama_8b", "cpu")
"""The recipe and the profile that are not for each other."""


def everything():
    """Every recipe with every profile, on workers that have the memory for it, and every variant."""
    for path in PROFILES:
        for recipe in RECIPES:
            if (recipe.stem, path.stem) == NEEDS_GPUS:
                continue
            profile = load_profile(path)
            if recipe.stem == "llama_1b" and not profile.workers.gpus:
                profile = changed_profile(path, workers__memory_gib=24)
            yield f"{recipe.stem}-{path.stem}", profile, workload_of(job_for(path, recipe=recipe), profile)
    for name in VARIANTS:
        yield name, *variant(name)


EVERYTHING = list(everything())
every = pytest.mark.parametrize(
    ("profile", "load"), [(profile, load) for _, profile, load in EVERYTHING], ids=[name for name, _, _ in EVERYTHING]
)


@every
def test_nothing_is_wrong_with_it(profile, load):
    assert [str(finding) for finding in lint(profile, load) if finding.level == "error"] == []


def test_what_needs_gpus_is_refused_where_there_are_none():
    recipe = next(path for path in RECIPES if path.stem == NEEDS_GPUS[0])
    profile = load_profile(CPU)
    wrong = [str(finding) for finding in lint(profile, workload_of(job_for(CPU, recipe=recipe), profile))]
    assert any("cluster.gpus_per_rank: it is 1 and the profile's workers have no GPUs" in finding for finding in wrong)


@every
def test_the_api_server_accepts_the_job(profile, load):
    needs_crds()
    assert refusals(rendered(profile, load)[-1]) == []


def test_the_check_of_the_crd_is_strict():
    needs_crds()
    job = rendered(*variant("kueue"))[-1]
    wrong = copy.deepcopy(job)
    wrong["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["envv"] = []
    assert len(refusals(wrong)) == 1
    wrong = copy.deepcopy(job)
    wrong["spec"]["backoffLimit"] = "2"
    assert len(refusals(wrong)) == 1
    wrong = copy.deepcopy(job)
    env = wrong["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]
    env.append(dict(env[0]))
    assert len(refusals(wrong)) == 1
    wrong = copy.deepcopy(job)
    wrong["spec"]["managedBy"] = "somebody.example"
    (found,) = refusals(wrong)
    assert "managedBy" in found, "a rule in CEL"


@every
def test_core_objects_are_whole_for_the_official_client(profile, load):
    """Kinds that have no CRD: read into the client's own models and written again, nothing is lost or unknown."""
    client = pytest.importorskip("kubernetes.client")
    kinds = {"ConfigMap": "V1ConfigMap", "PodDisruptionBudget": "V1PodDisruptionBudget"}
    api = client.ApiClient()
    for document in rendered(profile, load)[:-1]:
        model = api.deserialize(json.dumps(document), kinds[document["kind"]], "application/json")
        assert api.sanitize_for_serialization(model) == document


@every
def test_pods_are_whole_for_the_official_client(profile, load):
    client = pytest.importorskip("kubernetes.client")
    api = client.ApiClient()
    for template in pods_of(rendered(profile, load)[-1]).values():
        model = api.deserialize(json.dumps(template), "V1PodTemplateSpec", "application/json")
        assert api.sanitize_for_serialization(model) == template


@every
def test_kubernetes_validate_accepts_core_objects(profile, load):
    validate = pytest.importorskip("kubernetes_validate")
    for document in rendered(profile, load)[:-1]:
        validate.validate(document, "1.31", strict=True)


@every
def test_a_restricted_namespace_takes_every_pod(profile, load):
    job = rendered(profile, load)[-1]
    for name, template in pods_of(job).items():
        assert list(violations(template["spec"])) == [], name
    if options := job["spec"]["rayClusterSpec"].get("autoscalerOptions"):
        head = pods_of(job)["head"]["spec"]
        sidecar = {"name": "autoscaler", "securityContext": options["securityContext"]}
        assert list(violations({**head, "containers": [sidecar]})) == []


def test_the_check_of_pod_security_is_strict():
    spec = pods_of(rendered(*variant("kueue"))[-1])["workers"]["spec"]
    assert list(violations({**spec, "hostNetwork": True})) == ["hostNetwork"]
    assert list(violations({**spec, "volumes": [{"name": "a", "hostPath": {}}]})) == ["volume a: {'hostPath'}"]
    bare = {**spec["containers"][0], "securityContext": {}}
    assert len(list(violations({**spec, "containers": [bare]}))) == 2
    assert len(list(violations({**spec, "securityContext": {}}))) == 2


@every
def test_pods_hold_the_ranks_of_the_recipe(profile, load):
    """The world size of the job that the head reads is what the workers can hold, and nothing lands on the head."""
    config_map, *_, job = rendered(profile, load)
    cluster = parse_job(config_map["data"]["job.yaml"], "rendered").cluster
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert group["replicas"] == group["maxReplicas"] == cluster.nodes
    assert group["minReplicas"] == (
        (cluster.min_nodes or cluster.nodes) if profile.lifecycle.autoscaling else cluster.nodes
    )
    assert int(limits.get("nvidia.com/gpu", 0)) == cluster.ranks_per_node * cluster.gpus_per_rank
    assert int(limits["cpu"]) >= cluster.ranks_per_node * cluster.cpus_per_rank
    assert job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster.address == "127.0.0.1:6379"


@every
def test_shared_memory_fits_and_is_part_of_the_limit(profile, load):
    (group,) = rendered(profile, load)[-1]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    spec = group["template"]["spec"]
    (shm,) = [volume["emptyDir"] for volume in spec["volumes"] if volume["name"] == "shm"]
    mib = int(shm["sizeLimit"].removesuffix("Mi"))
    assert shm["medium"] == "Memory"
    store = int(group["rayStartParams"]["object-store-memory"])
    ranks = load.cluster.ranks_per_node
    assert mib << 20 >= store + load.buffer_bytes + ranks * (256 << 20)
    assert (mib << 20) + load.host_bytes <= profile.workers.memory_gib * GIB
    assert {"name": "shm", "mountPath": "/dev/shm"} in spec["containers"][0]["volumeMounts"]


@every
def test_the_grace_period_covers_the_last_save(profile, load):
    for name in ("head", "workers"):
        spec = pods_of(rendered(profile, load)[-1])[name]["spec"]
        assert spec["terminationGracePeriodSeconds"] == grace_s(profile, load) >= needed_grace_s(profile, load)
        command = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert command[1:4] == ["-m", "zerofleet.launch.pod_save", f"{load.storage}/first"]
        assert int(command[command.index("--timeout") + 1]) == spec["terminationGracePeriodSeconds"] - 15
        assert ("--leave" in command) == (name == "workers")
        importlib.import_module(command[2])


@every
def test_ranks_know_their_kubernetes_node(profile, load):
    assert containers.NODE_NAME == node_name.NODE_NAME
    for name in ("head", "workers"):
        env = pods_of(rendered(profile, load)[-1])[name]["spec"]["containers"][0]["env"]
        assert {"name": "ZEROFLEET_NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}} in env


@every
def test_the_budget_lets_no_pod_of_the_run_go(profile, load):
    *_, job = documents = rendered(profile, load)
    budgets = [document for document in documents if document["kind"] == "PodDisruptionBudget"]
    assert bool(budgets) == profile.limits.disruption_budget
    for budget in budgets:
        selector = budget["spec"]["selector"]
        pods = {name: template["metadata"]["labels"] for name, template in pods_of(job).items()}
        chosen = {
            name
            for name, labels in pods.items()
            if selector["matchLabels"].items() <= labels.items()
            and all(labels[e["key"]] in e["values"] for e in selector["matchExpressions"])
        }
        assert chosen == {"head", "workers", "submitter"}
        assert budget["spec"]["minAvailable"] == load.cluster.nodes + 2


@every
def test_autoscalers_of_nodes_leave_every_pod_where_it_is(profile, load):
    job = rendered(profile, load)[-1]
    for name, template in pods_of(job).items():
        assert STAY.items() <= template["metadata"]["annotations"].items(), name
    assert job["spec"]["submitterConfig"]["backoffLimit"] == 20  # the cluster goes with the last try


def test_a_larger_model_makes_shared_memory_and_grace_longer():
    profile = load_profile(H100)
    billions = [
        "model.config.hidden_size=4096",
        "model.config.intermediate_size=14336",
        "model.config.num_hidden_layers=32",
    ]
    small, large = workload(H100), workload(H100, *billions)
    assert large.parameters > 5e9 and large.num_buffers == 7
    assert large.snapshot_bytes == 6 * large.parameters  # 12 bytes of each, on two nodes
    assert grace_s(profile, large) > grace_s(profile, small)
    assert workload(H100, *billions, "cluster.min_nodes=1").snapshot_bytes == 2 * large.snapshot_bytes


@every
def test_pods_keep_the_labels_by_which_kuberay_selects_them(profile, load):
    for template in pods_of(rendered(profile, load)[-1]).values():
        labels = template["metadata"]["labels"]
        assert not {"app.kubernetes.io/name", "app.kubernetes.io/created-by"} & labels.keys()
        assert labels["app.kubernetes.io/instance"] == "first" and not [
            key for key in labels if key.startswith("ray.io")
        ]
    assert all(d["metadata"]["labels"]["app.kubernetes.io/name"] == "zerofleet" for d in rendered(profile, load))


def test_queues_are_told_by_labels_alone():
    kueue, volcano = rendered(*variant("kueue"))[-1], rendered(*variant("volcano"))[-1]
    assert kueue["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
    assert kueue["metadata"]["labels"]["kueue.x-k8s.io/max-exec-time-seconds"] == "60"
    worker = pods_of(kueue)["workers"]["metadata"]["annotations"]
    assert worker["kueue.x-k8s.io/podset-preferred-topology"] == "topology.kubernetes.io/rack"
    labels = volcano["metadata"]["labels"]
    assert labels["volcano.sh/queue-name"] == "q" and labels["volcano.sh/network-topology-mode"] == "hard"
    for job in (kueue, volcano):
        assert "suspend" not in job["spec"]
        assert not [t for t in pods_of(job).values() if "schedulerName" in t["spec"]]
    assert not [key for key in worker if key.startswith("volcano")]


def test_without_a_queue_pods_are_kept_near_by_affinity():
    for name, kind in (("near", "preferred"), ("nearer", "required")):
        affinity = pods_of(rendered(*variant(name))[-1])["workers"]["spec"]["affinity"]
        assert list(affinity["podAffinity"]) == [f"{kind}DuringSchedulingIgnoredDuringExecution"]
        (apart,) = affinity["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert apart["topologyKey"] == "kubernetes.io/hostname"
    kueue = pods_of(rendered(*variant("kueue"))[-1])["workers"]["spec"]["affinity"]
    assert list(kueue) == ["podAntiAffinity"]


def test_gpus_and_fabric_are_limits_of_workers_only():
    job = rendered(*variant("efa"))[-1]
    pods = {name: template["spec"]["containers"][0] for name, template in pods_of(job).items()}
    limits = pods["workers"]["resources"]["limits"]
    assert limits == pods["workers"]["resources"]["requests"]
    assert (limits["nvidia.com/gpu"], limits["vpc.amazonaws.com/efa"], limits["hugepages-2Mi"]) == ("8", "32", "5Gi")
    assert not [key for name in ("head", "submitter") for key in pods[name]["resources"]["limits"] if "/" in key]
    assert {"name": "FI_PROVIDER", "value": "efa"} in pods["workers"]["env"]
    assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"} in pods["head"]["env"]


@pytest.mark.parametrize(
    ("scratch", "source"),
    [
        ({"size_gib": 100}, {"emptyDir": {"sizeLimit": "100Gi"}}),
        ({"size_gib": 100, "host_path": "/mnt/disks"}, {"hostPath": {"path": "/mnt/disks", "type": "Directory"}}),
        (
            {"size_gib": 100, "storage_class": "topolvm"},
            {
                "ephemeral": {
                    "volumeClaimTemplate": {
                        "spec": {
                            "accessModes": ["ReadWriteOnce"],
                            "storageClassName": "topolvm",
                            "resources": {"requests": {"storage": "100Gi"}},
                        }
                    }
                }
            },
        ),
    ],
)
def test_a_workers_own_disk_is_where_its_ranks_look_for_it(scratch, source):
    profile = changed_profile(CPU, workers__scratch=scratch)
    pods = {name: template["spec"] for name, template in pods_of(rendered(profile, workload(CPU))[-1]).items()}
    (container,) = pods["workers"]["containers"]
    assert {"name": "scratch", **source} in pods["workers"]["volumes"]
    assert {"name": "scratch", "mountPath": "/mnt/scratch"} in container["volumeMounts"]
    assert {"name": "ZEROFLEET_SCRATCH", "value": "/mnt/scratch"} in container["env"]
    for name in ("head", "submitter"):
        assert "scratch" not in str(pods[name]).lower()


def test_workers_alone_go_to_gpu_nodes():
    pods = {name: template["spec"] for name, template in pods_of(rendered(*variant("roce"))[-1]).items()}
    assert pods["workers"]["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    toleration = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    assert pods["workers"]["tolerations"] == [toleration] and pods["workers"]["runtimeClassName"] == "nvidia"
    for name in ("head", "submitter"):
        assert pods[name]["nodeSelector"] == {"node-pool": "cpu"}
        assert not {"tolerations", "runtimeClassName"} & pods[name].keys()
    assert all(spec["imagePullSecrets"] == [{"name": "registry"}] for spec in pods.values())
    assert all(spec["serviceAccountName"] == "zerofleet" for spec in pods.values())
    assert not any(spec["automountServiceAccountToken"] for spec in pods.values())


def test_secrets_are_references_and_never_values():
    text = to_yaml(rendered(*variant("kueue")))
    assert "secretKeyRef" in text and "secretRef" in text
    job = rendered(*variant("kueue"))[-1]
    for name in ("head", "workers"):
        env = {entry["name"]: entry for entry in pods_of(job)[name]["spec"]["containers"][0]["env"]}
        assert env["WANDB_API_KEY"]["valueFrom"]["secretKeyRef"] == {"name": "wandb", "key": "api-key"}
    assert "runtimeEnvYAML" not in job["spec"]


def test_the_entrypoint_is_a_module_that_is_there():
    job = rendered(*variant("kueue"))[-1]
    program, flag, module, path = job["spec"]["entrypoint"].split()
    assert (program, flag, path) == ("python", "-m", "/etc/zerofleet/job.yaml")
    assert importlib.util.find_spec(module)


def test_yaml_means_the_same_to_every_reader():
    """Text that Go's YAML would take for a number or a truth value is in quotes."""
    texts = ["1e3", "0x10", "010", "1_000", "12:30", "y", "N", "no", "1.5", "+1", "~", "null", "plain", "8Gi", "a: b"]
    text = to_yaml([{"value": value} for value in texts])
    assert [document["value"] for document in yaml.safe_load_all(text)] == texts
    bare = [
        line.removeprefix("value: ") for line in text.splitlines() if line.startswith("value: ") and "'" not in line
    ]
    assert bare == ["plain", "8Gi"]


def test_the_run_keeps_its_own_storage_when_it_says_one():
    profile = load_profile(CPU)
    assert workload(CPU, profile=profile).storage == "/mnt/zerofleet/runs"
    assert workload(H100).storage == "s3://training-runs/zerofleet"
    assert workload(CPU, "run.storage=/mnt/zerofleet/mine", profile=profile).storage == "/mnt/zerofleet/mine"
