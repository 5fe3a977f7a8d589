import pytest

from zerofleet.cluster.policy.rounds import Round

ALL = ("a", "b", "c")


def round_of(quorum=2, deadline_s=10.0) -> Round:
    return Round(1, quorum, deadline_s)


def test_a_round_closes_at_once_when_all_have_delivered():
    found = round_of(quorum=3)
    found.deliver("a", 0.0)
    found.deliver("b", 1.0)
    assert found.decide(ALL, 1.0) == "wait" and found.missing(ALL) == ["c"]
    found.deliver("c", 2.0)
    assert found.decide(ALL, 2.0) == "close"


def test_the_deadline_counts_from_the_first_delivery_and_needs_the_quorum():
    found = round_of()
    assert found.decide(ALL, 100.0) == "wait", "nobody has delivered"
    found.deliver("b", 100.0)
    assert found.decide(ALL, 111.0) == "wait", "below the quorum"
    found.deliver("a", 112.0)
    assert found.decide(ALL, 112.0) == "close"
    early = round_of()
    early.deliver("a", 100.0)
    early.deliver("b", 101.0)
    assert early.decide(ALL, 109.9) == "wait"
    assert early.decide(ALL, 110.0) == "close"


@pytest.mark.parametrize(("present", "decision"), [(("a", "b"), "close"), (ALL, "wait")])
def test_who_has_gone_is_not_waited_for(present, decision):
    found = round_of()
    found.deliver("a", 0.0)
    found.deliver("b", 0.0)
    assert found.decide(present, 1.0) == decision


def test_a_rejected_silo_has_answered_but_does_not_count():
    found = round_of(quorum=2)
    found.deliver("a", 0.0)
    found.reject("b", "NaN", 0.0)
    assert found.decide(ALL, 20.0) == "wait", "c may still make the quorum"
    found.reject("c", "NaN", 20.0)
    assert found.decide(ALL, 20.0) == "close", "nobody is left who could"


def test_too_few_that_are_left_do_not_close_a_round():
    found = round_of(quorum=2)
    found.deliver("a", 0.0)
    assert found.decide(("a",), 100.0) == "wait"
