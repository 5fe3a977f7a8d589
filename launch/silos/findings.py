"""What of a job's silos contradicts itself or the rest of the job. Light, as all checks before anything is taken."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from importlib.util import find_spec

from zerofleet.cluster.policy.rounds import num_trimmed_of
from zerofleet.launch.config import JobConfig
from zerofleet.launch.silos.config import SilosConfig
from zerofleet.launch.silos.jobs import silo_job
from zerofleet.trainer.lint import Finding, lint

FEWEST_MASKED = 3
"""trainer/silos/masking.py's MIN_SILOS, which takes an extra to import."""
MOST_MASKED_NOISE = 0.5
"""Of an element: eight standard deviations are the range of fixed_point.MASKED, and no run draws that many."""


def silo_findings(job: JobConfig) -> Iterator[Finding]:
    """What of `silos` contradicts itself or the rest of the job; a silo's own job is looked at as any other."""
    silos = job.silos
    if silos is None:
        return
    if job.train.steps % silos.interval_steps:
        yield Finding(
            "error",
            "silos.interval_steps",
            f"train.steps={job.train.steps} is no multiple of {silos.interval_steps}: the last steps would be in no outer step",
        )
    if job.silo is not None:
        yield Finding("error", "silo", "it is written by zerofleet for the silos of a run: remove it")
    yield from _strategy_findings(silos)
    yield from _overlap_findings(silos)
    yield from _place_findings(job, silos)
    yield from _aggregation_findings(silos)
    yield from _privacy_findings(job, silos)
    yield from _masking_findings(silos)
    for name in silos.members:
        own = silo_job(job, name, None)
        for finding in lint(own.train_config(), own.cluster.world_size):
            yield Finding(finding.level, f"silos.members.{name}: {finding.where}", finding.message)
        for reason in _no_proximal_term(own):
            yield Finding("error", "silos.strategy", f"fedprox in silo {name}: {reason}, or take fedavg or diloco")


def _no_proximal_term(own: JobConfig) -> Iterator[str]:
    """Why fedprox's term cannot be added to the gradients of a silo (trainer/checkpoint/gradients.py)."""
    assert own.silo is not None
    if not own.silo.proximal_mu:
        return
    train, zero = own.train, own.deepspeed.get("zero_optimization", {})
    if train.precision == "fp16":
        yield "fp16 gradients are multiplied by a loss scale that changes within the step: set train.precision to bf16 or fp32"
    elif train.precision == "bf16" and train.zero_stage < 2:
        yield (
            f"in bf16 DeepSpeed keeps gradients of ZeRO-{train.zero_stage} where the term cannot be part of their norm: set zero_stage to 2 or 3, or "
            "train.precision to fp32"
        )
    if (zero.get("offload_optimizer") or {}).get("device", "none") != "none":
        yield "DeepSpeed takes the norm of offloaded gradients before the term could be added: remove offload_optimizer"


def _strategy_findings(silos: SilosConfig) -> Iterator[Finding]:
    if silos.strategy == "every_step" and silos.interval_steps != 1:
        yield Finding("error", "silos.interval_steps", f"it is {silos.interval_steps} and every_step takes 1")


def _overlap_findings(silos: SilosConfig) -> Iterator[Finding]:
    """Where an outer step cannot go on beside inner ones."""
    if not silos.overlap_steps:
        return
    why = []
    if silos.strategy == "every_step":
        why.append(
            "every_step takes an outer step after each inner one, and none is left to go on meanwhile: take diloco or fedavg"
        )
    elif silos.overlap_steps > silos.interval_steps:
        why.append(
            f"it is {silos.overlap_steps} and a round has {silos.interval_steps} inner steps (silos.interval_steps): outer weights are merged before the next "
            f"delta is made, so take {silos.interval_steps} at most"
        )
    if silos.secure_aggregation:
        why.append(
            "masks are agreed on by questions and answers of all silos at the end of a round, which inner steps would hold up: take 0 with "
            "silos.secure_aggregation"
        )
    for message in why:
        yield Finding("error", "silos.overlap_steps", message)


def _place_findings(job: JobConfig, silos: SilosConfig) -> Iterator[Finding]:
    """Silos of one cluster whose labels do not keep them apart."""
    own = {name: silo_job(job, name, None).cluster for name in silos.members}
    for one, other in itertools.permutations(own, 2):
        mine, others = own[one].labels, own[other].labels
        if own[one].address != own[other].address or not others or not mine.items() <= others.items():
            continue
        if not mine:
            message = (
                f"silo {one} has no labels and may take the nodes of silo {other}, which has: give it some of its own "
                f"(silos.members.{one}.labels), or remove those of {other}"
            )
            yield Finding("error", "silos.members", message)
        elif one < other or mine != others:
            message = f"every node with the labels of silo {other} has those of silo {one}: the two may share nodes"
            yield Finding("warning", "silos.members", message)


def _aggregation_findings(silos: SilosConfig) -> Iterator[Finding]:
    """A mean that hostile silos cannot move needs enough others, in the smallest round there may be too."""
    if silos.aggregation == "mean":
        return
    for num_silos in range(silos.least, len(silos.members) + 1):
        trimmed = num_trimmed_of(silos.trimmed_fraction, num_silos) if silos.aggregation == "trimmed_mean" else 1
        if 2 * trimmed >= num_silos:
            message = (
                f"a round of {num_silos} silos is too small for `{silos.aggregation}`, which takes {2 * trimmed + 1} to stand against "
                f"{trimmed} that are hostile: raise silos.quorum, take more silos, or lower silos.trimmed_fraction"
            )
            yield Finding("error", "silos.aggregation", message)
            return
    if weighted := sorted(name for name, member in silos.members.items() if member.weight != 1):
        message = f"`{silos.aggregation}` counts silos alike, and {', '.join(weighted)} has a `weight`: remove it"
        yield Finding("error", "silos.aggregation", message)


def _privacy_findings(job: JobConfig, silos: SilosConfig) -> Iterator[Finding]:
    if silos.privacy is None:
        return
    yield from _missing("silos.privacy", "cryptography", "dp_accounting")
    homeless = sorted(name for name, member in silos.members.items() if member.key_file is None)
    if homeless and "://" in job.run.storage.removeprefix("file://"):
        message = (
            f"the run folder is at {job.run.storage}, no place for the secrets of {', '.join(homeless)}: name a file of each silo's own by "
            "silos.members.NAME.key_file"
        )
        yield Finding("error", "silos.privacy", message)


def _masking_findings(silos: SilosConfig) -> Iterator[Finding]:
    """What under masks there cannot be."""
    if not silos.secure_aggregation:
        return
    yield from _missing("silos.secure_aggregation", "cryptography", "Crypto")
    why = []
    if len(silos.members) < FEWEST_MASKED:
        why.append(
            f"{len(silos.members)} silos would know each other's deltas from the sum: take {FEWEST_MASKED} or more"
        )
    if silos.codec != "fp32":
        why.append(
            f"masks hide whole numbers of 32 bits, and a sum of {silos.codec} has none: leave silos.codec at fp32"
        )
    if silos.aggregation != "mean":
        why.append(
            f"only a sum can be taken under masks, and `{silos.aggregation}` looks at each delta: set silos.aggregation to mean"
        )
    if (
        silos.privacy is not None
        and (std := silos.privacy.clip_norm * silos.privacy.noise_multiplier) > MOST_MASKED_NOISE
    ):
        why.append(
            f"fixed point ends at +-4, and noise of {std:g} would leave it now and then: keep clip_norm x noise_multiplier below {MOST_MASKED_NOISE:g}"
        )
    for message in why:
        yield Finding("error", "silos.secure_aggregation", message)
    dropping = len(silos.members) // 3
    if silos.least > len(silos.members) - dropping:
        message = f"masks survive the loss of {dropping} silos and silos.quorum does not: set it to {len(silos.members) - dropping}"
        yield Finding("warning", "silos.quorum", message)


def _missing(where: str, *modules: str) -> Iterator[Finding]:
    if absent := [name for name in modules if find_spec(name) is None]:
        yield Finding("error", where, f"it needs {', '.join(absent)}: pip install 'zerofleet[silos]'")
