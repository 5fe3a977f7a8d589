"""A silo's secret and the record of its releases, on one rank."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist

pytest.importorskip("dp_accounting", reason="the extra `silos` is not installed")

from zerofleet.trainer.config import PrivacyConfig
from zerofleet.trainer.errors import StorageError, UserError
from zerofleet.trainer.silos.chunks import Chunk
from zerofleet.trainer.silos.privacy import epsilon_of
from zerofleet.trainer.silos.private import KEY, RELEASES, Privacy
from zerofleet.trainer.storage import Storage

CONFIG = PrivacyConfig(clip_norm=1.0, noise_multiplier=2.0, delta=1e-5)
CHUNK = Chunk("w", 0, 4096)


class Delta:
    """What Privacy asks of an outbox."""

    def __init__(self, value: float) -> None:
        self.values, self.noise, self.refusal = np.full(CHUNK.count, value, np.float32), None, ""

    def deltas(self):
        yield CHUNK, self.values

    def refuse(self, why: str) -> None:
        self.refusal = why

    def sent(self) -> np.ndarray:
        return self.noise.put_on(self.values, CHUNK)


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory):
    """A process group of one."""
    store = dist.FileStore(str(tmp_path_factory.mktemp("store") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def opened(folder, key_file=None) -> Privacy:
    privacy = Privacy(CONFIG, Storage(str(folder)), key_file, 0, torch.device("cpu"))
    privacy.open()
    return privacy


def sent(privacy: Privacy, value: float, number: int = 1) -> np.ndarray:
    delta = Delta(value)
    assert privacy.measure(delta, number)
    privacy.note()
    return delta.sent()


def test_the_same_delta_gets_the_same_noise_from_another_attempt_and_counts_once(tmp_path):
    """Two noises on one delta would average out."""
    first = sent(opened(tmp_path), 0.25)
    again = opened(tmp_path)
    np.testing.assert_array_equal(sent(again, 0.25), first)
    assert again.spent() == {"epsilon": epsilon_of(2.0, 1, 1e-5), "delta": 1e-5, "releases": 1}


def test_another_delta_of_the_same_round_gets_other_noise_and_counts(tmp_path):
    """One noise on two deltas would cancel in their difference."""
    privacy = opened(tmp_path)
    first, second = sent(privacy, 0.001), sent(privacy, np.nextafter(np.float32(0.001), np.float32(1)))
    # Independent noises of a standard deviation of 2 each.
    assert np.std(first - second) == pytest.approx(8**0.5, rel=0.05)
    assert privacy.spent()["releases"] == 2
    assert opened(tmp_path).spent()["releases"] == 2, "it is written down"


def test_the_same_delta_in_another_round_gets_other_noise(tmp_path):
    privacy = opened(tmp_path)
    assert np.std(sent(privacy, 0.001, 1) - sent(privacy, 0.001, 2)) == pytest.approx(8**0.5, rel=0.05)


def test_the_whole_delta_is_clipped(tmp_path):
    """A norm of 64 x 0.25 = 16 becomes 1, that of 1/64 in each element; 4,096 draws of noise tell it to 0.03 each."""
    found = sent(opened(tmp_path), 0.25).astype(np.float64).mean()
    assert abs(found - 1 / 64) < 5 * 2 / 64


def test_two_silos_have_other_noise_unless_they_share_a_secret(tmp_path):
    (tmp_path / "secret").write_bytes(b"s" * 32)
    given = str(tmp_path / "secret")
    one, other, stranger = (opened(tmp_path / name, key) for name, key in (("a", given), ("b", given), ("c", None)))
    np.testing.assert_array_equal(sent(one, 0.1), sent(other, 0.1))
    assert not np.allclose(sent(one, 0.1), sent(stranger, 0.1))


def test_a_secret_is_made_once_and_for_its_user_only(tmp_path):
    opened(tmp_path)
    secret = (tmp_path / KEY).read_bytes()
    opened(tmp_path)
    assert (tmp_path / KEY).read_bytes() == secret and len(secret) == 32
    assert (tmp_path / KEY).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / KEY).parent.stat().st_mode & 0o777 == 0o700


def test_a_secret_that_is_too_short_or_missing_is_refused(tmp_path):
    (tmp_path / "short").write_bytes(b"x" * 31)
    with pytest.raises(UserError, match="has 31 bytes: give 32"):
        opened(tmp_path, str(tmp_path / "short"))
    with pytest.raises(UserError, match="cannot be had"):
        opened(tmp_path, str(tmp_path / "absent"))


def test_nan_is_neither_noised_nor_counted(tmp_path):
    privacy, delta = opened(tmp_path), Delta(np.nan)
    assert not privacy.measure(delta, 1)
    assert delta.noise is None and "NaN or infinite" in delta.refusal
    assert privacy.spent()["releases"] == 0


def test_nothing_is_sent_before_it_is_written_down(tmp_path, monkeypatch):
    """Storage that does not take it is waited for, as a server that is away."""
    privacy = opened(tmp_path)
    privacy.measure(Delta(0.1), 1)

    def full(path, data):
        raise StorageError("the disk is full")

    monkeypatch.setattr(privacy.storage, "create", full)
    with pytest.raises(ConnectionError, match="the disk is full"):
        privacy.note()
    assert Storage(str(tmp_path)).list(RELEASES) == []
