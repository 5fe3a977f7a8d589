"""The report of a scripted run, for pictures of it and for the browser's test.

python -m tests.support.sample_report report.html
python -m tests.support.browser report.html docs/report-desktop-light.png --width 1120 --height 1500
python -m tests.support.browser report.html docs/report-phone-dark.png --width 390 --height 1400 --dark
"""

from __future__ import annotations

import math
import random
import sys
from dataclasses import replace
from pathlib import Path

from tests.support.histories import Story
from zerofleet.cluster.config import ClusterConfig
from zerofleet.cluster.goodput.account import Account
from zerofleet.cluster.goodput.causes import explain
from zerofleet.cluster.goodput.ledger import Ledger
from zerofleet.launch.explanation import Explanation, happenings_of
from zerofleet.launch.report.page import Report, page
from zerofleet.trainer.config import TrainConfig

STEPS, RANKS = 2000, 8
_MIB = 2**20
PLAN = {
    "memory_bytes": 1540 * _MIB,
    "parts": {
        "activations": 610 * _MIB,
        "logits and loss": 384 * _MIB,
        "masters": 98 * _MIB,
        "moments": 196 * _MIB,
        "weights": 98 * _MIB,
    },
    "moment": "loss",
    "ranks": RANKS,
}
CONFIG = {
    "model": {"config": {"model_type": "llama"}},
    "data": {"files": ["python-stdlib"], "sequence_length": 512},
    "train": {"steps": STEPS, "global_batch_size": 64, "micro_batch_size": 8},
}


def sample() -> Report:
    """Two nodes of four ranks. A rank is killed, another becomes slow, and a node is lost."""
    draw, story = random.Random(3), Story(RANKS, ("node-a", "node-b"))
    story.at = 1_795_000_000.0
    story.driver(prepare_s=14.0, queue_s=9.0)
    story.say(
        "environment",
        processor="AMD EPYC",
        cores=64,
        memory_gib=251.5,
        python="3.11",
        packages={"zerofleet": "0.4.0", "torch": "2.13.0"},
    )
    story.say("plan", attempt=1, **PLAN)
    story.start(11.0).state("RUNNING").eval(2.0)
    _train(story, draw, 760)
    _restart(story.kill(rank=5, notice_s=0.3, mend_s=0.9), 2.1, story.step - 6)
    _train(story, draw, 1330, slow=2)
    slow = {
        "class": "straggler",
        "message": "rank 2 on node node-a is a straggler: 0.31 s of its own work per step, 1.48 x the ranks' median of 0.209 s",
    }
    story.say("incident", **slow)
    _train(story, draw, 1500, slow=2)
    _restart(story.fail("node", "node node-b does not answer any more", rank=4, mend_s=21.0), 9.0, story.step - 2)
    _train(story, draw, STEPS)
    ledger = Ledger.of(story.finish().history())
    causes = tuple(
        explain(Account(ledger, TrainConfig.model_validate(CONFIG), ClusterConfig(nodes=2, ranks_per_node=4)))
    )
    return Report(
        Explanation("llama-25m", "FINISHED", ledger, happenings_of(ledger), causes),
        STEPS,
        64,
        "run: {name: llama-25m}\n",
    )


def _restart(story: Story, start_s: float, from_step: int) -> None:
    story.start(start_s, from_step).state("RUNNING")
    story.attempts[-1] = replace(story.attempts[-1], checkpoint_attempt=story.attempt - 1, from_memory=True)


def _train(story: Story, draw: random.Random, until: int, slow: int | None = None) -> None:
    before = story.step
    while story.step < until:
        seconds = (0.3 if slow is None else 0.4) * draw.uniform(0.95, 1.1)
        step = story.step + 1
        loss = 3.1 + 6.1 * math.exp(-step / 160) + draw.gauss(0, 0.05)
        rate = 1e-3 * min(step / 100, 0.5 + 0.5 * math.cos(math.pi * step / STEPS))
        figures = {
            "learning_rate": rate,
            "grad_norm": 0.4 + 2 * math.exp(-step / 90) + draw.expovariate(12),
            "tokens": 32768,
        }
        story.steps(
            1,
            seconds,
            0.004,
            loss=loss,
            tokens_per_second=32768 / seconds,
            mfu=0.126 / seconds,
            data_s=0.006,
            stall_s=0.004,
            **figures,
        )
        if story.step % 250 == 0:
            story.eval(2.0)
            story.results[-1].data["loss"] = loss + 0.08
            story.say("checkpoint", phase="save", bytes=392 * _MIB)
    own_s = [0.209 + 0.002 * rank if rank != slow else 0.31 for rank in range(RANKS)]
    memory = [int((1330 + 12 * rank) * _MIB) for rank in range(RANKS)]
    story.ranks(own_s, [0.006] * RANKS, [0.004] * RANKS, steps=story.step - before, memory_bytes=memory)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(sample()))
