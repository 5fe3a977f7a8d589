import pytest

from zerofleet.launch.silos.arithmetic import BITS, all_reduce_bytes, between, privacy, round_bytes
from zerofleet.trainer.config import PrivacyConfig
from zerofleet.trainer.silos.codecs import CODECS


def test_the_bits_are_those_of_the_codecs():
    assert BITS.keys() == CODECS.keys()
    for name, codec in CODECS.items():
        assert round_bytes(2**16, name) == codec.encoded_bytes(2**16)


def test_a_ring_sends_twice_all_but_one_part():
    """Two silos: half of the gradient to reduce it, half to gather it, 2 bytes an element."""
    assert all_reduce_bytes(1000, 2) == 2000
    assert all_reduce_bytes(1000, 4) == 3000


@pytest.mark.parametrize(("codec", "times"), [("fp32", "38 times"), ("int4", "282 times")])
def test_the_sentence_compares_with_data_parallel(codec, times):
    assert times in between(1_000_000, 4, 50, codec)


def test_the_epsilon_of_the_whole_run_is_told_before_it():
    """Noise of 8 clipping norms for 4 rounds: a Gaussian mechanism with noise 8 / 2 / sqrt(4) = 2, by the accountant's library."""
    dp_accounting = pytest.importorskip("dp_accounting", reason="the extra `silos` is not installed")
    said = privacy(PrivacyConfig(clip_norm=0.5, noise_multiplier=8, delta=1e-5), 4)
    assert "a norm of 0.5 and adds noise of 4 " in said
    assert f"epsilon is {dp_accounting.get_epsilon_gaussian(2.0, 1e-5):.3g} at delta 1e-05 after all 4 rounds" in said
