"""Every element lies in exactly one chunk."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zerofleet.trainer.silos.chunks import chunks_of


@given(st.dictionaries(st.sampled_from(["a", "b", "b.weight"]), st.integers(0, 90)), st.integers(1, 50))
def test_every_element_once_in_the_same_order_for_everybody(elements, max_elements):
    chunks = list(chunks_of(elements, max_elements))
    assert all(0 < chunk.count <= max_elements for chunk in chunks)
    covered = [(chunk.name, index) for chunk in chunks for index in range(chunk.start, chunk.start + chunk.count)]
    assert covered == [(name, index) for name in sorted(elements) for index in range(elements[name])]
    assert chunks == list(chunks_of(dict(reversed(elements.items())), max_elements))
