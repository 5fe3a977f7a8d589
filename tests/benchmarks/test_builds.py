"""Two checkouts in turns: a planted slowdown is found, what cannot be compared is refused, a build that does not train says why."""

from __future__ import annotations

import random
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.support.cli import Cli
from zerofleet.benchmarks import builds
from zerofleet.benchmarks.builds import Measured, package_of, results, take_turns
from zerofleet.benchmarks.checkout import ROOT, build_of
from zerofleet.benchmarks.comparison import compare, differences
from zerofleet.benchmarks.record import Build, read_result
from zerofleet.trainer.errors import UserError

pytestmark = pytest.mark.timeout(60)
LOOP = '    def train_step(self) -> Control:\n        """One optimizer step. Returns what all ranks were asked to do after it."""\n'


def checkout(folder: Path, added: str) -> Path:
    """A copy of this code with lines added at the beginning of a step."""
    folder.mkdir()
    for path in ROOT.iterdir():
        if path.name in ("launch", "cluster", "benchmarks", "k8s", "pyproject.toml"):
            (folder / path.name).symlink_to(path)
    shutil.copytree(ROOT / "trainer", folder / "trainer", ignore=shutil.ignore_patterns("__pycache__"))
    loop = folder / "trainer/loop.py"
    text = loop.read_text()
    assert text.count(LOOP) == 1, "the step is where this test looks for it"
    loop.write_text(text.replace(LOOP, LOOP + f"        {added}\n"))
    return folder


def test_a_checkout_is_what_zerofleet_is_imported_from(tmp_path):
    package = package_of(ROOT, tmp_path / "package")
    assert (package / "zerofleet").resolve() == ROOT.resolve()
    with pytest.raises(UserError, match="is no checkout of zerofleet"):
        package_of(tmp_path, tmp_path / "other")


def test_a_checkout_tells_its_version(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "9.8.7"\n')
    assert build_of(tmp_path) == Build(version="9.8.7", commit=None)
    assert build_of().version == build_of(ROOT).version
    assert build_of(tmp_path / "elsewhere") == Build(version="unknown", commit=None)


def test_files_say_that_they_took_turns():
    found = {"A": Measured([1.0] * 8, [1e9] * 8), "B": Measured([1.1] * 8, [1e9] * 8)}
    both = {arm: Build(version=arm, commit=None) for arm in found}
    made = results(found, both, ["quickstart.yaml"], datetime.now(UTC), (0.0, 0.0, 0.0), 60.0)
    assert differences(made["A"], made["B"]) == []
    (finding,) = compare(made["A"], made["B"])
    assert finding.verdict == "slower" and "8 pairs" in finding.detail


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "is no checkout of zerofleet"),
        (["--output", "{folder}/none/x"], "is no folder"),
        ([str(builds.RECIPE), "cluster.nodes=2"], "compared on CPUs of one machine"),
        ([str(builds.RECIPE), "cluster.gpus_per_rank=1"], "compared on CPUs of one machine"),
        ([str(builds.RECIPE), "cluster.bind_cores=true"], "compared on CPUs of one machine"),
        ([str(builds.RECIPE), "model.liger_kernels=true"], "run on GPUs only"),
    ],
)
def test_what_cannot_be_compared(tmp_path, monkeypatch, options, says):
    monkeypatch.setattr(builds.ops, "is_built", lambda name: True)
    monkeypatch.setattr(builds.signal, "signal", lambda number, handler: None)
    with pytest.raises(UserError, match=says):
        builds.main([str(tmp_path), *(option.format(folder=tmp_path) for option in options)])


def test_too_few_starts_have_no_interval(tmp_path, capsys):
    with pytest.raises(SystemExit):
        builds.main([str(tmp_path), "--starts", "5"])
    assert "fewer than 6 starts" in capsys.readouterr().err


class FakeSide:
    """A build whose steps take so long, by its own clock."""

    def __init__(self, step_s):
        self.step_s, self.asked = step_s, []

    def turn(self, steps):
        self.asked.append(steps)
        slowest = {"seconds": steps * self.step_s * len(self.asked), "losses": [6.0] * steps, "peak_bytes": 7}
        return [{**slowest, "seconds": 0.0}, slowest] if len(self.asked) > 2 else [slowest, slowest]


def test_a_start_is_one_value_the_median_of_its_turns_by_the_slowest_rank():
    sides, found = {"A": FakeSide(0.01), "B": FakeSide(0.02)}, {"A": Measured(), "B": Measured()}
    take_turns(sides, found, 3, random.Random(0))
    assert sides["A"].asked == [5, 5, 26, 26, 26] == sides["B"].asked, "as many steps, of half a second or more"
    assert found["A"].turns == [pytest.approx([0.03, 0.04, 0.05])] and found["A"].step_s == pytest.approx([0.04])
    assert found["B"].step_s == pytest.approx([0.08]) and found["B"].peak_bytes == [7.0]


@pytest.mark.integration
@pytest.mark.further
@pytest.mark.timeout(600)
def test_a_slower_build_is_found_and_one_that_does_not_train_is_told(tmp_path, tiny_corpus, tiny_cache, capsys):
    cli = Cli(tmp_path / "cli", tiny_corpus)
    slower = checkout(tmp_path / "slower", "time.sleep(0.3)")
    options = [str(cli.recipe), "--starts", "6", "--turns", "2", "--output", str(tmp_path / "found")]
    assert builds.main([str(slower), *options]) == 0
    said = capsys.readouterr().out
    assert "step: faster (0." in said and "the first losses differ" not in said
    first, second = (read_result(tmp_path / f"found-{arm}.json") for arm in "AB")
    assert len(first.series[0].values) == len(second.series[0].values) == 6
    assert first.alternation.session == second.alternation.session
    assert first.series[0].median > second.series[0].median + 0.2
    assert (tmp_path / "found-A.svg").exists() and (tmp_path / "found-B.md").exists()
    broken = checkout(tmp_path / "broken", "raise RuntimeError('planted')")
    assert builds.main([str(broken), *options]) == 1
    assert "build A has ended" in (err := capsys.readouterr().err) and "RuntimeError: planted" in err
