import pytest

from zerofleet.launch.silos.arithmetic import BITS, all_reduce_bytes, between, round_bytes
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
