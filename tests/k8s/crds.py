"""The validator and the CRDs that lie beside the project when it is developed; absent elsewhere."""

from __future__ import annotations

import copy
import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest

SHARED = Path(__file__).parents[3] / "shared"
RAY_JOBS = SHARED / "crds/kuberay/ray.io_rayjobs.yaml"
FILES = {
    "RayJob": RAY_JOBS,
    **{
        kind: SHARED / f"crds/kueue/kueue.x-k8s.io_{plural}.yaml"
        for kind, plural in {
            "ClusterQueue": "clusterqueues",
            "LocalQueue": "localqueues",
            "ResourceFlavor": "resourceflavors",
            "Topology": "topologies",
        }.items()
    },
    "Queue": SHARED / "crds/volcano/scheduling.volcano.sh_queues.yaml",
}
"""CRDs by the kind that they define."""
TOOL = SHARED / "tools/crd_strict.py"


def needs_crds() -> None:
    if not (RAY_JOBS.exists() and TOOL.exists()):
        pytest.skip(f"no CRDs in {SHARED}")


@cache
def _tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("crd_strict", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def _schema(kind: str, version: str) -> tuple[dict[str, Any], jsonschema.Draft202012Validator]:
    _, _, raw = _tool().load_crd(FILES[kind], version)
    return raw, jsonschema.Draft202012Validator(_tool().strict_schema(raw))


def refusals(document: dict[str, Any]) -> list[str]:
    """What a strict API server would say of a custom resource: unknown fields, types, lists, CEL rules."""
    raw, validator = _schema(document["kind"], document["apiVersion"].partition("/")[2])
    tool, stored = _tool(), copy.deepcopy(document)
    tool.apply_defaults(raw, stored)
    found = [f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(stored)]
    found += [f"{path}: {message}" for path, message in tool.list_walk(raw, stored)]
    found += [f"{path}: {message}" for path, message in tool.cel_walk(raw, stored)]
    return found
