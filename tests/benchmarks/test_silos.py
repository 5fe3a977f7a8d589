import math
import statistics

import pytest

from zerofleet.benchmarks.silos import RECIPE, parallel_sections, plot, silos_recipe, upper_bound
from zerofleet.launch.config import JobConfig, load_job


def test_data_parallel_has_the_silos_data_and_as_many_tokens():
    job = silos_recipe(1, "/tokenizer", ["train.steps=100"])
    assert job.silos is not None
    parallel = JobConfig.model_validate(parallel_sections(job))
    assert parallel.silos is None and parallel.train.steps == job.train.steps
    assert parallel.train.global_batch_size == job.train.global_batch_size * len(job.silos.members)
    assert {name: source.files for name, source in parallel.data.sources.items()} == {
        name: member.files for name, member in job.silos.members.items()
    }
    assert parallel.data.tokenizer == "/tokenizer" and parallel.run.seed == 1
    assert load_job(RECIPE).data.packing == "concatenate"


def test_the_upper_bound_is_a_one_sided_t_interval():
    gaps = [0.001, 0.002, 0.006]
    assert upper_bound(gaps) == pytest.approx(0.003 + 2.920 * statistics.stdev(gaps) / math.sqrt(3))
    assert upper_bound([0.1]) == math.inf


def test_the_plot_has_both_curves():
    curves = {"silos": [(50, 5.0), (100, 4.0)], "parallel": [(50, 4.5), (100, 3.5)]}
    page = plot([{"curves": curves}])
    assert page.count("<path") >= 2 and "silos ends at 4" in page and "parallel ends at 3.5" in page
