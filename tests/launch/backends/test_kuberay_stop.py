"""What `stop` does to a run that its queue has ended already."""

from __future__ import annotations

import argparse
from types import SimpleNamespace

from tests.k8s.objects import condition, observed, ray_job, running, workload
from zerofleet.launch.backends import kuberay_verbs
from zerofleet.launch.backends.kuberay_watch import Place
from zerofleet.launch.progress import Progress


def test_a_run_that_kueue_has_deactivated_is_not_deleted(monkeypatch, capsys):
    """Its submitter is gone with its pods, as of a run that has not begun; `resume` reads the rest."""
    late = condition("Evicted", "True", "DeactivatedDueToMaximumExecutionTimeExceeded", "exceeding the maximum")
    seen = observed(ray_job(running("Suspended")), workloads=[workload(late, active=False)])
    deleted: list[str] = []
    monkeypatch.setattr(kuberay_verbs, "place_of", lambda arguments: Place(None, "training", "first"))
    monkeypatch.setattr(kuberay_verbs, "find_job", lambda *about: None)
    monkeypatch.setattr(kuberay_verbs, "look", lambda *about: seen)
    monkeypatch.setattr(kuberay_verbs, "stored_job", lambda place: SimpleNamespace(train=SimpleNamespace(steps=9)))
    monkeypatch.setattr(kuberay_verbs, "progress_of", lambda place, looked, steps: Progress(steps))
    monkeypatch.setattr(kuberay_verbs, "delete_run", lambda *about: deleted.append("run"))
    assert kuberay_verbs.stop(argparse.Namespace(timeout=None)) == 0
    said = capsys.readouterr().out
    assert deleted == [] and "(exceeding the maximum)" in said and "resume first --backend kuberay" in said
