import json

import yaml

from zerofleet.benchmarks.silo_faults import RECIPE, SCENARIOS, VICTIM, Found, table
from zerofleet.cluster.faults import parse_faults
from zerofleet.launch.checks import check_job
from zerofleet.launch.config import override_job, parse_job
from zerofleet.launch.silos.driver import faults_of


def test_every_scenario_is_a_job_and_faults_that_there_are():
    job = parse_job(yaml.safe_dump(RECIPE), "recipe")
    assert job.silos is not None and VICTIM in job.silos.members
    for scenario in SCENARIOS:
        check_job(override_job(job, list(scenario.overrides)))
        faults = json.dumps(list(scenario.faults))
        assert len(parse_faults(faults_of(VICTIM, faults))) == len(scenario.faults)
        assert parse_faults(faults_of("a", faults)) == ()


def found(name: str, loss: float, losses: list[tuple[int, float]], **more) -> Found:
    return Found(
        name, "done", "FINISHED", 16, heldout_loss=loss, losses=losses, **{"missing": [], "rejected": [], **more}
    )


def test_the_table_compares_with_the_run_without_a_fault():
    rows = [
        found("none", 4.0, [(4, 5.0)]),
        found("back again", 4.0, [(4, 5.0)]),
        found("slow", 4.1, [(4, 5.1)], missing=[3, 4], rejected=[7]),
    ]
    none, back, slow = table(rows).splitlines()[2:]
    assert none.endswith("| none | 4.0000 |  |")
    assert back.endswith("| 4.0000 | the same bits |")
    assert "| 3, 4, 7 (rejected) | 4.1000 | +2.50% |" in slow
