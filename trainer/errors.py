"""Errors: scenario, numbers, remedy. What the user can mend is a `UserError`; an `assert` is for our own mistakes."""

from __future__ import annotations

from zerofleet.trainer.data.quarantine import Ranges, named


class ZerofleetError(Exception):
    """Base of everything zerofleet raises on purpose."""

    exit_code = 1


class UserError(ZerofleetError, ValueError):
    """The user's mistake: shown as it is, without a traceback, exit code 2."""

    exit_code = 2


class NotFoundError(UserError):
    """A run, step or file that was named does not exist: exit code 4."""

    exit_code = 4


class DataError(UserError):
    """The corpus cannot be used: missing, empty, or not decodable."""


class StorageError(ZerofleetError):
    """Storage refused a read or a write (full, not writable, unreachable)."""


class CheckpointUnusable(ZerofleetError):
    """A checkpoint that must not be loaded: damaged, incomplete, or not this run's.

    `step` and `attempt` name it; `reason` says what is wrong with it.
    """

    def __init__(self, step: int, attempt: int, reason: str) -> None:
        super().__init__(f"checkpoint of step {step} (attempt {attempt}) cannot be used: {reason}")
        self.step, self.attempt, self.reason = step, attempt, reason

    def __reduce__(self) -> tuple[type, tuple[int, int, str]]:
        return type(self), (self.step, self.attempt, self.reason)


class WrongFragment(ZerofleetError):
    """The optimizer's fragments do not hold the weights of the module they are named after: training would be wrong."""


class BadStep(ZerofleetError):
    """What a step gave must not be kept: it is played again, and what it was fed is left out when that gives the same.

    `ranges` are its sample positions; `loss` is its loss, where that is what is wrong with it.
    """

    def __init__(self, message: str, step: int, ranges: Ranges, loss: float | None = None) -> None:
        super().__init__(f"{message} ({named(ranges)})")
        self.step, self.ranges, self.loss = step, ranges, loss


class NonFiniteStep(BadStep):
    """A gradient was NaN or infinite in a precision that has no loss scaling: the step was not applied."""

    def __init__(self, step: int, grad_norm: float, ranges: Ranges) -> None:
        super().__init__(f"step {step} was not applied: its gradient norm is {grad_norm}", step, ranges)
        self.grad_norm = grad_norm

    def __reduce__(self) -> tuple[type, tuple[int, float, Ranges]]:
        return type(self), (self.step, self.grad_norm, self.ranges)


class LossSpike(BadStep):
    """A loss stands out from those before it by more than `train.loss_spike_threshold`."""

    def __init__(self, step: int, loss: float, score: float, threshold: float, ranges: Ranges) -> None:
        super().__init__(
            f"step {step} is a loss spike: {loss:.4f} lies {score:.1f} robust standard deviations above the median of the steps "
            f"before it, more than train.loss_spike_threshold={threshold:g}",
            step,
            ranges,
            loss,
        )
        self._arguments = (step, loss, score, threshold, ranges)

    def __reduce__(self) -> tuple[type, tuple[int, float, float, float, Ranges]]:
        return type(self), self._arguments


class SnapshotUnreachable(ZerofleetError):
    """A snapshot on another node cannot be read for the connection to that node; it may be as good as ever. `step` and `attempt` name it."""

    def __init__(self, step: int, attempt: int, reason: str) -> None:
        super().__init__(reason)
        self.step, self.attempt, self.reason = step, attempt, reason

    def __reduce__(self) -> tuple[type, tuple[int, int, str]]:
        return type(self), (self.step, self.attempt, self.reason)


class WrongArithmetic(ZerofleetError):
    """Some ranks have computed or kept something wrong: the devices or the memory of `ranks` are suspect."""

    def __init__(self, message: str, ranks: list[int]) -> None:
        super().__init__(message)
        self.ranks = ranks


class ReplicaDivergence(WrongArithmetic):
    """Replicas that must be equal are not: `ranks` are the odd ones."""

    def __init__(self, step: int, ranks: list[int]) -> None:
        named = ", ".join(map(str, ranks))
        message = f"after step {step} the weights of rank {named} differ from the other replicas': its memory or device is suspect"
        super().__init__(message, ranks)
        self.step = step

    def __reduce__(self) -> tuple[type, tuple[int, list[int]]]:
        return type(self), (self.step, self.ranks)


class WrongProbe(WrongArithmetic):
    """Some ranks compute another probe loss from the same weights than the others: `ranks` are those."""

    def __init__(self, step: int, ranks: list[int], loss: float, saved: float) -> None:
        named = ", ".join(map(str, ranks))
        super().__init__(
            f"rank {named} makes a probe loss of {loss:.6g} of the weights of step {step}, which gave {saved:.6g} when they were saved, and still "
            "do on the other ranks: its device, or what is installed on its node, is suspect",
            ranks,
        )
        self.step = step
        self._arguments = (step, ranks, loss, saved)

    def __reduce__(self) -> tuple[type, tuple[int, list[int], float, float]]:
        return type(self), self._arguments


class Superseded(UserError):
    """A newer attempt of the run was claimed while this one still trained: it ends, since nothing that it does can count."""

    def __init__(self, attempt: int, newest: int) -> None:
        super().__init__(f"attempt {attempt} ends: attempt {newest} was claimed meanwhile and owns the run")
        self.attempt, self.newest = attempt, newest

    def __reduce__(self) -> tuple[type, tuple[int, int]]:
        return type(self), (self.attempt, self.newest)
