"""Outer steps beside inner ones: the arithmetic of a reference in one process, at every stage, after a kill, and that it is beside."""

from __future__ import annotations

import contextlib
import copy
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.support.ranks import Outcome, Plan
from tests.support.silos import INTERVAL, STEPS, Silos
from zerofleet.trainer.batch import BatchPlan
from zerofleet.trainer.config import TrainConfig
from zerofleet.trainer.data.cache import DataCache
from zerofleet.trainer.data.feed import Feed
from zerofleet.trainer.data.sequences import IGNORED_LABEL
from zerofleet.trainer.engine import build_optimizer, parameter_groups
from zerofleet.trainer.model import build_model, check
from zerofleet.trainer.run_folder import RunFolder
from zerofleet.trainer.schedule import learning_rate

pytestmark = [pytest.mark.integration, pytest.mark.further, pytest.mark.timeout(400)]

OUTER_RATE, MOMENTUM = 0.7, 0.9
"""Those of diloco."""


@dataclass
class Alone:
    """A silo of the reference: plain torch, no ZeRO, no threads."""

    config: TrainConfig
    cache: DataCache
    losses: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.model = build_model(self.config, check(self.config, self.cache), contextlib.nullcontext(), on_gpu=False)
        train = self.config.train
        self.optimizer = build_optimizer(self.config, parameter_groups(self.model, train.weight_decay))
        plan = BatchPlan.of(train.global_batch_size, train.micro_batch_size, 1)
        self.feed = Feed.of(self.config, self.cache.train, plan, self.config.order_key, ())

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return {name: parameter.data for name, parameter in self.model.named_parameters()}

    def step(self, number: int) -> None:
        plan, total = self.feed.step_plan(number - 1), 0.0
        for batch in self.feed.micro_batches(plan, 0):
            logits = self.model(**{name: torch.from_numpy(values) for name, values in batch.inputs.items()}).logits
            targets = torch.from_numpy(batch.labels).view(-1)
            loss = F.cross_entropy(
                logits.view(-1, logits.shape[-1]), targets, ignore_index=IGNORED_LABEL, reduction="sum"
            )
            (loss / plan.num_tokens).backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.gradient_clipping or float("inf"))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config.train, number - 1)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses[number] = total / plan.num_tokens


def reference(silos: Silos, overlap_steps: int) -> dict[str, dict[int, float]]:
    """Losses by silo. Each outer step is made at once, and taken when `overlap_steps` more inner steps are done."""
    alone = {name: Alone(silos.config(name, 0), silos.cache) for name in "ab"}
    outer = copy.deepcopy(alone["a"].weights)
    momentum = {name: torch.zeros_like(values) for name, values in outer.items()}
    pending: tuple[int, dict[str, Any], dict[str, Any]] | None = None

    def merge() -> None:
        assert pending is not None
        for silo, ended in pending[2].items():
            for name, now in alone[silo].weights.items():
                now.copy_(pending[1][name] + (now - ended[name]))

    for step in range(1, STEPS + 1):
        for silo in alone.values():
            silo.step(step)
        if pending and step == pending[0] + overlap_steps:
            merge()
            pending = None
        if step % INTERVAL:
            continue
        ended = {name: copy.deepcopy(silo.weights) for name, silo in alone.items()}
        tokens = {name: silo.feed.num_tokens(step - INTERVAL, step) for name, silo in alone.items()}
        for name, values in outer.items():
            mean = sum(tokens[silo] * (values - ended[silo][name]) for silo in ended) / sum(tokens.values())
            momentum[name].mul_(MOMENTUM).add_(mean)
            values.sub_(OUTER_RATE * (mean + MOMENTUM * momentum[name]))
        pending = step, copy.deepcopy(outer), ended
        if not overlap_steps:
            merge()
            pending = None
    return {name: silo.losses for name, silo in alone.items()}


def silos_of(folder, corpus, cache, overlap_steps: int, codec="fp32", **silo) -> Silos:
    return Silos(folder, corpus, cache, codec, silo={"overlap_steps": overlap_steps, **silo})


def worst_difference(found: dict[str, Outcome], expected: dict[str, dict[int, float]]) -> float:
    """The largest relative one of all losses of all silos."""
    return max(
        abs(outcome.losses()[step] - loss) / loss
        for name, outcome in found.items()
        for step, loss in expected[name].items()
    )


def merges_of(outcome: Outcome) -> list[tuple[int, int, int]]:
    """Round, the step at whose end its delta was handed over, and the one after which the outer weights were merged."""
    return [
        (e.data["round"], e.data["handed_over_step"], e.step) for e in outcome.of("outer") if e.data["state"] == "done"
    ]


@pytest.mark.parametrize(
    ("one", "other", "overlap_steps"), [((2, 1), (1, 0), 1), ((2, 3), (1, 2), 1), ((1, 1), (2, 0), INTERVAL)]
)
def test_a_run_with_overlap_is_that_of_the_reference(tmp_path, tiny_corpus, tiny_cache, one, other, overlap_steps):
    silos = silos_of(tmp_path, tiny_corpus, tiny_cache, overlap_steps)
    found = silos.both(one, other)
    silos.close()
    assert not found["a"].errors and not found["b"].errors, (found["a"].errors, found["b"].errors)
    assert worst_difference(found, reference(silos, overlap_steps)) < 1e-4
    assert worst_difference(found, reference(silos, 0)) > 1e-3, "another schedule is another run"
    for name in "ab":
        merges = [(1, 2, 2 + overlap_steps), (2, 4, 4 + overlap_steps), (3, 6, 6)]
        assert merges_of(found[name]) == merges, "after the last step there is nothing to go on with"
    assert silos.masters("a") == silos.masters("b"), "both end with the outer weights"
    assert [data["round"] for data in silos.told("round")] == [1, 2, 3]


def test_inner_steps_go_on_while_a_delta_is_on_its_way(tmp_path, tiny_corpus, tiny_cache):
    """`b` begins when `a` has the first inner step of its second round behind it: who waits for an outer step never comes so far."""
    silos = silos_of(tmp_path, tiny_corpus, tiny_cache, INTERVAL)
    run = RunFolder(silos.config("a", 0).run.storage, "tiny")
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(silos.run, "a", 2, 1, checkpoint__interval_steps=1)
        deadline = time.monotonic() + 120
        while not (run.storage.exists("job.yaml") and any(found.step == 3 for found in run.checkpoints())):
            assert time.monotonic() < deadline and not ahead.done()
            time.sleep(0.02)
        assert not silos.told("round"), "nobody but a has sent anything"
        found = {"b": silos.run("b", 1, 0), "a": ahead.result()}
    silos.close()
    assert not found["a"].errors and not found["b"].errors, (found["a"].errors, found["b"].errors)
    assert worst_difference(found, reference(silos, INTERVAL)) < 1e-4, "who was how fast does not matter"
    steps = {event.step: event for event in found["a"].of("step")}
    for event in found["a"].of("outer")[1:-1]:
        first = event.data["handed_over_step"] + 1
        for step in (steps[number] for number in range(first, first + INTERVAL)):
            assert event.data["handed_over_at"] <= step.start < event.start
    first_round = found["a"].of("outer")[1]
    assert first_round.data["arrived_at"] > steps[3].start


@pytest.mark.parametrize(("overlap_steps", "step", "codec"), [(1, 3, "fp32"), (INTERVAL, 4, "int8")])
def test_a_kill_between_handing_over_and_merging_changes_no_bit(
    tmp_path, tiny_corpus, tiny_cache, overlap_steps, step, codec
):
    """The state that it goes on from has the delta on its way, in the second case with an inner step behind it: it is sent once more. The server has
    forgotten the first one, so it is this one that counts."""
    whole = silos_of(tmp_path / "whole", tiny_corpus, tiny_cache, overlap_steps, codec)
    expected = whole.both((2, 1), (1, 1))
    broken = silos_of(tmp_path / "broken", tiny_corpus, tiny_cache, overlap_steps, codec)
    first = broken.run("a", 2, 1, Plan(kill_at=(1, step)), checkpoint__interval_steps=1)
    saved = broken.manifest("a")
    assert saved.step == step - 1 and saved.scalars.engine["outer_handed_over"] == 2, "on its way in what was saved"
    broken.forget()
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(broken.run, "b", 1, 1)
        second = broken.run("a", 2, 1)
    assert first.errors or -9 in first.exit_codes
    assert not second.errors and not other.result().errors
    assert {**first.losses(), **second.losses()} == expected["a"].losses()
    assert other.result().losses() == expected["b"].losses()
    assert broken.masters("a") == whole.masters("a") == broken.masters("b")
    states = [(e.data["round"], e.data["state"]) for e in second.of("outer")]
    assert states == [(0, "resumed"), (1, "done"), (2, "done"), (3, "done")]
    whole.close()
    broken.close()


def test_a_silo_that_is_left_out_takes_the_outer_weights_as_they_are(tmp_path, tiny_corpus, tiny_cache):
    """A NaN in each delta of `b`: what it has learned meanwhile is not carried over, and the next delta is of what comes after."""
    silos = Silos(tmp_path, tiny_corpus, tiny_cache, quorum=1, silo={"overlap_steps": 1})
    found = silos.both((1, 1), (2, 2, Plan(delta_fault="nan")))
    silos.close()
    assert not found["a"].errors and not found["b"].errors, (found["a"].errors, found["b"].errors)
    states = [(e.data["round"], e.data["state"], e.step) for e in found["b"].of("outer")]
    assert states == [(0, "joined", 0), (1, "rejected", 3), (2, "rejected", 5), (3, "rejected", 6)]
    tokens = [event.data["tokens"] for event in found["b"].of("step")]
    assert [e.data["tokens"] for e in found["b"].of("outer")][1:] == [sum(tokens[:2]), tokens[3], tokens[5]]
    assert silos.masters("a") == silos.masters("b")


def test_what_is_sent_is_what_is_sent_without_overlap(tmp_path, tiny_corpus, tiny_cache):
    """Under noise too, and what the thread sends is part of the record."""
    private = {"privacy": {"clip_norm": 0.1, "noise_multiplier": 0.5}}
    silos = silos_of(tmp_path, tiny_corpus, tiny_cache, 1, **private)
    found = silos.both((2, 1), (1, 1))
    num_bytes = sum(4 * tensor.num_elements for tensor in silos.manifest("a").tensors.values())
    silos.close()
    for outcome in found.values():
        assert not outcome.errors, outcome.errors
        joined, *rounds = [event.data for event in outcome.of("outer")]
        assert [data["sent_bytes"]["deltas"] for data in rounds] == [num_bytes] * 3
        assert [data["privacy"]["releases"] for data in (joined, *rounds)] == [0, 1, 2, 3]
    assert [data["delta_bytes"] for data in silos.told("round")] == [{"a": num_bytes, "b": num_bytes}] * 3
