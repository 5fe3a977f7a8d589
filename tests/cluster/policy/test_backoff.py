"""Waits grow, never together, never for ever."""

import random

from zerofleet.cluster.policy.backoff import FIRST_S, LONGEST_S, Backoff


def test_waits_double_up_to_a_bound_with_jitter():
    backoff = Backoff(random.Random(1))
    waits = [backoff.next() for _ in range(12)]
    bounds = [min(LONGEST_S, FIRST_S * 2**n) for n in range(12)]
    assert all(bound / 2 <= wait <= bound for wait, bound in zip(waits, bounds, strict=True))
    assert backoff.failures == 12


def test_two_that_failed_together_do_not_come_back_together():
    first, second = Backoff(random.Random(1)), Backoff(random.Random(2))
    assert [first.next() for _ in range(5)] != [second.next() for _ in range(5)]


def test_after_thousands_of_failures_it_is_still_the_bound():
    backoff = Backoff(random.Random(1), failures=5000)
    assert LONGEST_S / 2 <= backoff.next() <= LONGEST_S
