import pytest

from zerofleet.cluster.policy.masking import Masking

ALL = ["a", "b", "c"]


def until(phase: str, least: int = 3, quorum: int = 2, silos: str = "abc") -> Masking:
    """A round of these silos in which nobody was missing before that phase."""
    policy = Masking(least, quorum, deadline_s=10)
    for name in ("keys", "shares", "deltas"):
        if name == phase:
            break
        for silo in silos:
            assert policy.answer(name, silo, 0.0)  # type: ignore[arg-type]
        policy.advance(silos, 0.0)
    assert policy.phase == phase
    return policy


def test_a_round_in_which_everybody_answers():
    policy = until("reveal")
    assert policy.threshold == 2
    policy.answer("reveal", "a", 1.0)
    assert policy.advance(ALL, 1.0) == "reveal"
    policy.answer("reveal", "c", 1.0)
    assert policy.advance(ALL, 1.0) == "sum", "as many as are needed, whoever they are"


def test_keys_are_waited_for_until_all_that_run_have_sent_theirs_or_the_deadline_is_over():
    policy = Masking(3, 3, 10)
    for silo in "abc":
        policy.answer("keys", silo, 5.0)
    assert policy.advance("abcd", 14.9) == "keys"
    assert policy.missing("abcd") == ["d"]
    assert policy.advance("abcd", 15.0) == "shares"
    assert not policy.answer("shares", "d", 15.0), "it is in the next round"


def test_fewer_than_the_least_wait_for_ever():
    policy = Masking(3, 2, 10)
    for silo in "ab":
        policy.answer("keys", silo, 0.0)
    assert policy.advance("ab", 1e6) == "keys" and policy.is_overdue(1e6)


@pytest.mark.parametrize("phase", ["shares", "deltas"])
@pytest.mark.parametrize("how", ["gone", "anew", "late"])
def test_a_third_may_drop_out_of_any_phase(phase, how):
    policy = until(phase)
    for silo in "ab":
        policy.answer(phase, silo, 1.0)
    assert policy.advance(ALL, 1.0) == phase
    if how == "anew":
        policy.begins_anew("c")
    after = policy.advance("ab" if how == "gone" else ALL, 11.0 if how == "late" else 1.0)
    assert after == {"shares": "deltas", "deltas": "reveal"}[phase]
    assert not policy.answer(phase, "c", 11.0)


@pytest.mark.parametrize("phase", ["shares", "deltas", "reveal"])
def test_with_more_of_them_gone_there_is_no_sum(phase):
    policy = until(phase)
    policy.answer(phase, "a", 1.0)
    assert policy.advance("a", 1.0) == "failed"


def test_who_died_after_its_delta_stays_in_the_sum_and_is_asked_nothing():
    policy = until("deltas")
    for silo in ALL:
        policy.answer("deltas", silo, 1.0)
    policy.begins_anew("c")
    assert policy.advance(ALL, 1.0) == "reveal"
    assert policy.answered["deltas"] == {"a", "b", "c"} and policy.missing(ALL) == ["a", "b"]
    assert not policy.answer("reveal", "c", 1.0)


def test_a_delta_of_no_use_is_not_waited_for_and_its_silo_helps_all_the_same():
    policy = until("deltas")
    for silo in "ab":
        policy.answer("deltas", silo, 1.0)
    policy.excuse("c")
    assert policy.advance(ALL, 1.0) == "reveal"
    assert policy.answered["deltas"] == {"a", "b"}
    assert policy.answer("reveal", "c", 1.0)


def test_the_quorum_is_of_deltas():
    policy = until("deltas", least=4, quorum=4, silos="abcd")
    for silo in "abc":
        policy.answer("deltas", silo, 1.0)
    assert policy.threshold == 3
    assert policy.advance("abc", 1.0) == "failed"


def test_another_attempt_may_give_other_keys_while_keys_are_gathered():
    policy = Masking(3, 3, 10)
    for silo in "abc":
        policy.answer("keys", silo, 0.0)
    policy.begins_anew("b")
    assert policy.advance(ALL, 0.0) == "keys" and policy.missing(ALL) == ["b"]
    assert policy.answer("keys", "b", 1.0)
    assert policy.advance(ALL, 1.0) == "shares"
