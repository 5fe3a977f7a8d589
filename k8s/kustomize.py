"""A run's documents as a kustomize base: a file for each, and the list of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from zerofleet.k8s.to_yaml import to_yaml

KUSTOMIZATION = "kustomization.yaml"


def base(documents: Iterable[dict[str, Any]], comment: Iterable[str]) -> dict[str, str]:
    """Texts by file name. Each kind comes once in a run's documents. Overlays may patch what they like but names and namespace, which job.yaml and the
    hooks have inside."""
    texts = {f"{document['kind'].lower()}.yaml": to_yaml([document]) for document in documents}
    listed = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": [*texts]}
    return {KUSTOMIZATION: to_yaml([listed], comment), **texts}
