"""Silos as ranks without Ray, and the outer server beside them: stages, world sizes, repeated steps."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from tests.support.ranks import Outcome, Plan, job, run_attempt
from zerofleet.cluster.outer.rounds import Rounds, Terms
from zerofleet.cluster.outer.server import OuterServer
from zerofleet.cluster.outer.state import OuterStore
from zerofleet.trainer.checkpoint.format import Manifest
from zerofleet.trainer.config import SiloConfig, TrainConfig
from zerofleet.trainer.run_folder import RunFolder
from zerofleet.trainer.schedule import learning_rate
from zerofleet.trainer.silos.codecs import load_codec
from zerofleet.trainer.silos.strategies import load_strategy
from zerofleet.trainer.silos.wire import VARIABLE
from zerofleet.trainer.storage import Storage

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

STEPS, INTERVAL = 6, 2


class Silos:
    """Two silos over the same data, each in its own order, and the outer server of their run."""

    def __init__(self, folder, corpus, cache, codec="fp32", quorum=2, deadline_s=600.0) -> None:
        self.folder, self.corpus, self.cache, self.codec = folder, corpus, cache, codec
        self.events: list[tuple[str, dict]] = []
        terms = Terms({"a": 1.0, "b": 1.0}, load_strategy("diloco"), load_codec(codec), quorum, deadline_s)
        rounds = Rounds(terms, OuterStore(Storage(str(folder)), 4), lambda *event: self.events.append(event))
        self.server = OuterServer(rounds)

    def config(self, name: str, stage: int) -> TrainConfig:
        silo = SiloConfig(name=name, interval_steps=INTERVAL, codec=self.codec)
        found = job(self.folder / name, self.corpus, silo=silo, train__steps=STEPS, train__zero_stage=stage)
        return found.model_copy(update={"data": job(self.corpus, self.corpus).data})

    def run(self, name: str, world_size: int, stage: int, plan: Plan = Plan()) -> Outcome:
        plan = replace(plan, environment={VARIABLE: self.server.where.to_env()})
        return run_attempt(self.config(name, stage), self.cache, world_size, plan)

    def both(self, one: tuple, other: tuple) -> dict[str, Outcome]:
        with ThreadPoolExecutor(2) as pool:
            found = pool.map(lambda arguments: self.run(*arguments), (("a", *one), ("b", *other)))
        return dict(zip("ab", found, strict=True))

    def masters(self, name: str) -> dict[str, str]:
        """Digests of a silo's weights in its newest checkpoint."""
        run = RunFolder(str(self.folder / name / "runs"), "tiny")
        manifest = Manifest.from_bytes(run.storage.read(run.checkpoints()[-1].manifest))
        return {label: value for label, value in manifest.digests.items() if label.startswith("master/")}

    def close(self) -> None:
        self.server.close()


@pytest.fixture
def silos(tmp_path, tiny_corpus, tiny_cache):
    found = Silos(tmp_path, tiny_corpus, tiny_cache)
    yield found
    found.close()


@pytest.mark.parametrize(("one", "other"), [((2, 2), (1, 0)), ((1, 3), (2, 0)), ((2, 3), (1, 1))])
def test_silos_of_other_stages_and_sizes_end_with_the_same_weights(silos, one, other):
    found = silos.both(one, other)
    assert not found["a"].errors and not found["b"].errors, (found["a"].errors, found["b"].errors)
    assert silos.masters("a") == silos.masters("b")
    assert [data["round"] for kind, data in silos.events if kind == "round"] == [1, 2, 3]
    states = [(e.data["round"], e.data["state"]) for e in found["a"].of("outer")]
    assert states == [(0, "joined"), (1, "done"), (2, "done"), (3, "done")]
    assert found["a"].losses() != found["b"].losses(), "each walks through the data in its own order"


@pytest.mark.parametrize(("step", "codec"), [(2, "fp32"), (5, "fp32"), (6, "int8")])
def test_a_killed_rank_changes_no_bit(tmp_path, tiny_corpus, tiny_cache, step, codec):
    """Killed at the beginning of a step: with the outer step behind it or before it. What int8 leaves out is part of the state."""
    whole = Silos(tmp_path / "whole", tiny_corpus, tiny_cache, codec)
    expected = whole.both((2, 1), (1, 1))
    broken = Silos(tmp_path / "broken", tiny_corpus, tiny_cache, codec)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(broken.run, "b", 1, 1)
        first = broken.run("a", 2, 1, Plan(kill_at=(1, step)))
        second = broken.run("a", 2, 1)
    assert first.errors or -9 in first.exit_codes
    assert not second.errors and not other.result().errors
    assert {**first.losses(), **second.losses()} == expected["a"].losses()
    assert other.result().losses() == expected["b"].losses()
    assert broken.masters("a") == whole.masters("a")
    whole.close()
    broken.close()


def test_a_silo_joins_late_and_another_comes_back_too_late(tmp_path, tiny_corpus, tiny_cache):
    """`a` is stopped after one round; `b` begins then, and does the rest alone; then `a` comes back."""
    silos = Silos(tmp_path, tiny_corpus, tiny_cache, quorum=1, deadline_s=0.01)
    first = silos.run("a", 1, 1, Plan(stop_after=3))
    late = silos.run("b", 2, 2)
    back = silos.run("a", 1, 1)
    assert not first.errors and not late.errors and not back.errors, (first.errors, late.errors, back.errors)
    states = {
        name: [(e.data["round"], e.data["state"]) for e in found.of("outer")]
        for name, found in (("b", late), ("a", back))
    }
    assert states == {"b": [(1, "joined"), (2, "done"), (3, "done")], "a": [(1, "resumed"), (3, "late")]}
    assert sorted(late.losses()) == [1, 2, 3, 4], "its own data it takes from the beginning"
    rates = [event.data["learning_rate"] for event in late.of("step")]
    assert rates == [learning_rate(silos.config("b", 2).train, step) for step in (2, 3, 4, 5)]
    assert sorted(back.losses()) == [4]
    assert silos.masters("a") == silos.masters("b")
    silos.close()


def test_a_silo_that_was_stopped_before_the_last_outer_step_ends_with_it(silos):
    """What it had saved at its last step is the state before it."""
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(silos.run, "b", 1, 1)
        first = silos.run("a", 1, 1, Plan(stop_after=STEPS))
        second = silos.run("a", 1, 1)
    assert not first.errors and not second.errors and not other.result().errors
    assert first.of("stopped") and second.of("finished")
    assert [(e.data["round"], e.data["state"]) for e in second.of("outer")] == [(2, "resumed"), (3, "done")]
    assert silos.masters("a") == silos.masters("b")


def test_every_byte_that_leaves_a_silo_is_written_down(silos):
    found = silos.both((2, 1), (1, 1))
    num_bytes = sum(4 * tensor.num_elements for tensor in _manifest(silos, "a").tensors.values())
    seeded = 0
    for outcome in found.values():
        joined, *rounds = [event.data for event in outcome.of("outer")]
        assert [data["sent_bytes"]["deltas"] for data in rounds] == [num_bytes] * 3
        assert all(data["sent_bytes"]["initial_weights"] == 0 for data in rounds)
        assert all(0 < data["sent_bytes"]["questions"] < 20_000 for data in rounds)
        seeded += joined["sent_bytes"]["initial_weights"]
    assert seeded >= num_bytes, "whoever came first, or both"
    told = [data["delta_bytes"] for kind, data in silos.events if kind == "round"]
    assert told == [{"a": num_bytes, "b": num_bytes}] * 3, "the other end counts the same"


def _manifest(silos: Silos, name: str) -> Manifest:
    run = RunFolder(str(silos.folder / name / "runs"), "tiny")
    return Manifest.from_bytes(run.storage.read(run.checkpoints()[-1].manifest))
