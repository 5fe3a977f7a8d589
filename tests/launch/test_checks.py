"""What of a job contradicts itself, before anything is started."""

from __future__ import annotations

import pytest

from zerofleet.launch.checks import check_job
from zerofleet.launch.config import load_job
from zerofleet.trainer.errors import UserError


@pytest.mark.parametrize(
    ("override", "where", "part"),
    [
        ("cluster.address=foo", "cluster.address", "'foo' is not host:port"),
        ("cluster.address=http://a:8265", "cluster.address", "is not host:port"),
        ("cluster.ranks_per_node=100001", "cluster.ranks_per_node", "100001 ranks, and a run has at most 100000"),
        ("cluster.gpus_per_rank=0.5", "cluster.gpus_per_rank", "one GPU of its own or none"),
        ("cluster.min_nodes=2", "cluster.min_nodes", "the most that the run takes, is 1"),
        ("run.init_from=first@", "run.init_from", "write first@1000, or first alone"),
        ("run.init_from=first@newest", "run.init_from", "is not RUN@STEP"),
        ("run.init_from='@3'", "run.init_from", "write RUN@1000"),
    ],
)
def test_each_mistake_says_where_and_what_to_do(recipe, override, where, part):
    with pytest.raises(UserError) as refused:
        check_job(load_job(recipe, [override]))
    assert where in str(refused.value) and part in str(refused.value)


@pytest.mark.parametrize(
    "right", ["cluster.address=10.0.0.1:6379", "run.init_from=s3://me@store/first", "run.init_from=first@80"]
)
def test_what_is_right_passes(recipe, right):
    check_job(load_job(recipe, [right]))
