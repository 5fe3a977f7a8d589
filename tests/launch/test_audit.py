"""`zerofleet audit`: what it reads, what it says, and its exit code; the runs are simulated, the prepared data is real."""

from __future__ import annotations

import json
import shutil
import sys
import uuid
from dataclasses import asdict

import pytest

from tests.support.checkpoints import written
from tests.support.ranks import job
from tests.support.simulated_run import SimulatedRun, feed_of
from zerofleet.cluster.outer.state import RoundRecord
from zerofleet.launch import cli
from zerofleet.launch.audit import audit_run
from zerofleet.trainer.batch import BatchPlan
from zerofleet.trainer.checkpoint.commit import assemble, commit
from zerofleet.trainer.config import DEFAULT_SILO, CheckpointConfig, TrainConfig
from zerofleet.trainer.data.cache import DataCache
from zerofleet.trainer.data.feed import Feed
from zerofleet.trainer.data.prepare import prepare
from zerofleet.trainer.run_folder import CheckpointId, RunFolder

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def config(tmp_path, tiny_corpus, tiny_cache) -> TrainConfig:
    return job(tmp_path, tiny_corpus, train__steps=20)


def simulated(cache: DataCache, data: str | None = None) -> SimulatedRun:
    """Killed after step 12, and begun again from 10 on three ranks."""
    feed = feed_of(cache.train, 8, 2, 2, seed=0)
    return SimulatedRun(feed, data=cache.fingerprint if data is None else data).attempt(0, 12).attempt(10, 20, 3)


def write(run: SimulatedRun, config: TrainConfig, storage: str = "", name: str = "tiny") -> RunFolder:
    folder = RunFolder(storage or config.run.storage, name)
    folder.create(json.dumps(config.model_dump(mode="json")))
    for record in run.attempts:
        folder.storage.create(f"attempts/{record.attempt:04d}.json", json.dumps(asdict(record)).encode())
        writer = folder.writer("ledger", record.attempt)
        for line in run.lines:
            if line["attempt"] == record.attempt:
                writer.append(json.dumps(line))
        writer.close()
    return folder


def audited(folder: RunFolder, capsys, *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["audit", folder.storage.url, *arguments])
    return code, *capsys.readouterr()


def test_a_run_that_is_exact(config, tiny_cache, capsys):
    folder = write(simulated(tiny_cache), config)
    code, out, err = audited(folder, capsys)
    assert (code, err) == (0, "")
    rows = {line[:14].strip(): line[15:] for line in out.splitlines()}
    assert rows["run"] == "tiny: exact, proven up to step 20 of 20"
    assert rows["fed"] == "160 positions, each exactly once, with 5,120 tokens"
    assert rows["repeated"] == "2 steps, done again after a restart"
    assert rows["data"] == str(tiny_cache.path)
    assert "NOT EXACT" not in out and "found" not in rows


def test_a_mixture_is_audited_by_its_own_schedule(tmp_path, tiny_corpus, capsys):
    files = {name: f"{tiny_corpus}/{digit}*.txt" for name, digit in (("a", 1), ("b", 2))}
    data = {"tokenizer_vocab_size": 400, "sequence_length": 32, "packing": "best_fit", "cache": str(tmp_path / "cache")}

    def weighed(weight: int) -> TrainConfig:
        sources = {name: {"files": [files[name]], "weight": weight if name == "a" else 1} for name in files}
        return job(tmp_path, tiny_corpus, train__steps=20, data={**data, "sources": sources})

    config = weighed(3)
    cache = prepare(config.data, config.run.seed, lambda stage, fraction, detail: None)
    feed = Feed.of(config, cache.train, BatchPlan.of(8, 2, 2), DEFAULT_SILO, ())
    run = SimulatedRun(feed, data=cache.fingerprint).attempt(0, 12).attempt(10, 20, 3)
    code, out, _ = audited(write(run, config), capsys)
    assert code == 0, out
    assert "exact, proven up to step 20 of 20" in out
    other = weighed(2)
    other = other.model_copy(update={"run": other.run.model_copy(update={"storage": str(tmp_path / "others")})})
    code, out, _ = audited(write(run, other), capsys)
    assert code == 1 and "wrong data" in out


def test_what_was_left_out_of_the_data_is_said(tmp_path, tiny_corpus, capsys):
    (tmp_path / "bad.txt").write_bytes(b"abc\xff")
    files = {"files": [f"{tiny_corpus}/*.txt", f"{tmp_path}/bad.txt"], "on_bad": "quarantine"}
    config = job(tmp_path, tiny_corpus, train__steps=20)
    data = config.data.model_copy(update={**files, "cache": str(tmp_path / "cache")})
    config = config.model_copy(update={"data": data})
    cache = prepare(config.data, config.run.seed, lambda stage, fraction, detail: None)
    run = SimulatedRun(
        Feed.of(config, cache.train, BatchPlan.of(8, 2, 2), DEFAULT_SILO, ()), data=cache.fingerprint
    ).attempt(0, 20)
    folder = write(run, config)
    code, out, _ = audited(folder, capsys)
    assert code == 0 and f"1 bad place left out (all from there on: {tmp_path}/bad.txt: byte 3 (0xff)" in out
    _, out, _ = audited(folder, capsys, "--json")
    assert json.loads(out)["left_out"]["num_bad"] == 1


def test_a_line_of_other_data_is_found_and_decides_for_no_other(config, tiny_cache, capsys):
    run = simulated(tiny_cache)
    run.line(20)["data"] = "f" * 32
    code, out, _ = audited(write(run, config), capsys)
    assert code == 1 and "proven up to step 19 of 20" in out
    assert f"step 20 (attempt 2): wrong data: the ledger says that it was fed from {'f' * 32}, not from" in out


@pytest.mark.parametrize("digests", [None, 3, "xy", "abc"])
def test_a_line_with_digests_that_are_none_is_damaged(config, tiny_cache, capsys, digests):
    run = simulated(tiny_cache)
    run.line(15)["rank_digests"] = digests
    code, _, err = audited(write(run, config), capsys)
    assert code == 1 and "the ledger is damaged" in err and "Traceback" not in err


def test_an_attempt_that_is_damaged_is_named(config, tiny_cache, capsys):
    folder = write(simulated(tiny_cache), config)
    folder.storage.local_path("attempts/0001.json").write_text("{")
    code, _, err = audited(folder, capsys)
    assert code == 1 and "0001.json is damaged: it is no record of an attempt" in err


def test_json_is_one_object_with_all_that_is_said(config, tiny_cache, capsys):
    run = simulated(tiny_cache)
    run.attempts[1].quarantine.append([400, 408])
    run.line(15)["ranges"] = [[113, 121]]
    code, out, _ = audited(write(run, config), capsys, "--json")
    facts = json.loads(out)
    assert code == 1
    assert (facts["exact"], facts["proven_step"], facts["last_step"], facts["steps"]) == (False, 14, 20, 20)
    assert facts["quarantine"] == [{"ranges": [[400, 408]], "attempt": 2, "from_step": 11}]
    assert facts["data"] == tiny_cache.fingerprint and facts["repeated_steps"] == 2
    assert {finding["kind"] for finding in facts["findings"]} == {"gap", "repeat", "positions"}
    assert all(finding["attempt"] == 2 and finding["message"] for finding in facts["findings"])


def test_what_is_wrong_is_said_in_sentences(config, tiny_cache, capsys):
    run = simulated(tiny_cache)
    run.lines.remove(run.line(15))
    code, out, _ = audited(write(run, config), capsys)
    assert code == 1
    assert "tiny: NOT EXACT, proven up to step 14 of 20" in out
    assert (
        "found          positions 112 to 119 were fed to nobody: the ledger has no line of attempt 2 for step 15" in out
    )


def test_many_findings_are_cut_short_on_the_screen_only(config, tiny_cache, capsys):
    feed = feed_of(tiny_cache.train, 8, 2, 2, seed=0)
    wrong = {step: step % 2 for step in range(1, 41)}
    run = SimulatedRun(feed, data=tiny_cache.fingerprint).attempt(0, 40, wrong=wrong)
    longer = config.model_copy(update={"train": config.train.model_copy(update={"steps": 40})})
    folder = write(run, longer)
    code, out, _ = audited(folder, capsys)
    assert code == 1 and out.count("wrong data: rank") == 20 and "and 20 more: --json has all" in out
    assert len(json.loads(audited(folder, capsys, "--json")[1])["findings"]) == 40


def test_a_run_of_which_nothing_is_recorded_yet(config, capsys):
    code, out, _ = audited(write(SimulatedRun(None), config), capsys)
    assert (code, out) == (0, "no step of run tiny has been recorded yet: there is nothing to prove\n")


def test_a_run_that_goes_on_is_proven_up_to_what_is_recorded(config, tiny_cache, capsys):
    """Attempt 3 begins after step 20, of which a snapshot alone has the last two."""
    run = simulated(tiny_cache).attempt(20, 20)
    run.lines = run.lines[:-2]
    code, out, _ = audited(write(run, config), capsys)
    assert code == 0 and "proven up to step 18 of 20" in out
    assert "not recorded   steps 19 to 20 yet, which attempt 3 goes on from" in out


def test_a_checkpoint_knows_of_a_step_that_the_ledger_lost(config, tiny_cache, capsys):
    run = simulated(tiny_cache)
    run.lines = run.lines[:-2]
    folder = write(run, config)
    assert audited(folder, capsys)[0] == 0
    folder.storage.create(CheckpointId(15, 1).manifest, b"of a step of attempt 1 that does not count")
    assert audited(folder, capsys)[0] == 0
    folder.storage.create(CheckpointId(20, 2).manifest, b"{}")
    code, out, _ = audited(folder, capsys)
    assert code == 1 and "the ledger has no line of attempt 2 for steps 19 to 20" in out


def test_an_attempt_that_begins_while_the_audit_reads(config, tiny_cache):
    """It walks back past a checkpoint that was just listed."""
    run = simulated(tiny_cache)
    folder = write(run, config)
    folder.storage.create(CheckpointId(20, 2).manifest, b"{}")
    later = run.attempt(15, 15).attempts[-1]

    class Restarted(RunFolder):
        def checkpoints(self, silo="main"):
            found = super().checkpoints(silo)
            self.storage.create("attempts/0003.json", json.dumps(asdict(later)).encode())
            return found

    found = audit_run(Restarted(config.run.storage, "tiny")).audit
    assert found.is_exact and found.last_step == 15


def test_a_ledger_of_before_lines_named_their_data(config, tiny_cache, capsys):
    folder = write(simulated(tiny_cache, data=""), config)
    code, _, err = audited(folder, capsys)
    assert code == 2 and "does not say which data it was fed" in err and "Resume it" in err
    files = [written(folder, CheckpointId(20, 2), rank) for rank in (1, 0)]
    manifest = assemble(files)
    manifest.fingerprints["data"] = tiny_cache.fingerprint
    commit(CheckpointConfig(keep_last=9), folder, manifest, lambda: None)
    assert audited(folder, capsys)[0] == 0


def test_prepared_data_that_is_missing(config, tiny_cache, tmp_path, capsys, monkeypatch):
    moved = config.model_copy(update={"data": config.data.model_copy(update={"cache": str(tmp_path / "empty")})})
    folder = write(simulated(tiny_cache), moved)
    code, _, err = audited(folder, capsys)
    assert code == 4 and tiny_cache.fingerprint in err and "which is not in" in err and "--cache" in err
    assert audited(folder, capsys, "--cache", str(tiny_cache.path))[0] == 0
    assert audited(folder, capsys, "--cache", str(tiny_cache.path.parent))[0] == 0
    assert audited(folder, capsys, "--cache", str(tmp_path / "nowhere"))[0] == 4


def test_other_prepared_data_proves_nothing(config, tiny_cache, capsys):
    folder = write(simulated(tiny_cache, data="0" * 32), config)
    code, _, err = audited(folder, capsys, "--cache", str(tiny_cache.path))
    assert code == 2 and f"holds other data ({tiny_cache.fingerprint} in {tiny_cache.path.name})" in err


def test_damaged_prepared_data_accuses_no_rank(config, tiny_cache, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_cache.path, copy)
    data = bytearray((copy / "train.bin").read_bytes())
    data[100] ^= 1
    (copy / "train.bin").write_bytes(data)
    run = simulated(tiny_cache)
    every = run.feed.store.num_sequences // 8 + 1  # steps, so that the damaged sequence is fed too
    longer = config.model_copy(update={"train": config.train.model_copy(update={"steps": every})})
    whole = SimulatedRun(run.feed, data=tiny_cache.fingerprint).attempt(0, every)
    folder = write(whole, longer, str(tmp_path / "longer"))
    assert audited(folder, capsys)[0] == 0
    code, _, err = audited(folder, capsys, "--cache", str(copy))
    assert code == 2 and "train.bin does not match its hash" in err


def test_prepared_data_that_changed_before_it_was_fed_proves_nothing(config, tiny_cache, tmp_path, capsys):
    """The ledger agrees with what is read now: ranks and audit see the same wrong bytes."""
    copy = shutil.copytree(tiny_cache.path, tmp_path / "copy")
    data = bytearray((copy / "train.bin").read_bytes())
    data[100] ^= 1
    (copy / "train.bin").write_bytes(data)
    changed = DataCache.open(copy)
    every = changed.train.num_sequences // 8 + 1
    longer = config.model_copy(update={"train": config.train.model_copy(update={"steps": every})})
    run = SimulatedRun(feed_of(changed.train, 8, 2, 2, seed=0), data=changed.fingerprint).attempt(0, every)
    code, out, err = audited(write(run, longer), capsys, "--cache", str(copy))
    assert (code, out) == (2, "") and "train.bin does not match its hash" in err


@pytest.mark.parametrize("line", [b'{"step": 1', b"[1, 2]", b"\x00\x00"])
def test_a_ledger_line_that_is_none(config, tiny_cache, capsys, line):
    folder = write(simulated(tiny_cache), config)
    segment = folder.storage.local_path("ledger/attempt-0002/segment-00000.jsonl")
    segment.write_bytes(segment.read_bytes() + line + b"\n")
    code, _, err = audited(folder, capsys)
    assert code == 1 and "is damaged" in err and "take the line out of it" in err


def test_no_such_run(config, capsys, tmp_path):
    assert cli.main(["audit", str(tmp_path / "runs" / "nope")]) == 4


def test_a_run_folder_of_another_file_system(config, tiny_cache, capsys):
    folder = write(simulated(tiny_cache), config, f"memory://audited-{uuid.uuid4().hex}")
    code, out, _ = audited(folder, capsys)
    assert code == 0 and "exact, proven up to step 20" in out


def test_progress_comes_with_the_steps(config, tiny_cache):
    said: list[tuple[int, int]] = []
    found = audit_run(write(simulated(tiny_cache), config), None, lambda *done: said.append(done))
    assert found.audit.is_exact and said == [(10, 20), (20, 20)]


def test_the_progress_line_is_written_over_and_gone_at_the_end(monkeypatch, capsys):
    from zerofleet.launch.commands import audit

    monkeypatch.setattr(audit.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(audit, "_PROGRESS_INTERVAL_S", 0.0)
    line = audit.ProgressLine()
    line(500, 2000)
    line(2000, 2000)
    first, second = capsys.readouterr().err.split("\r\x1b[K")[1:]
    assert first.startswith("step 500 of 2,000  ") and "steps/s  ETA" in first and second == ""


def test_where_nobody_looks_there_is_no_progress_line(capsys):
    from zerofleet.launch.commands.audit import ProgressLine

    ProgressLine()(1, 1)
    assert capsys.readouterr().err == ""


def test_where_numpy_is_missing_the_remedy_is_said(config, tiny_cache, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "zerofleet.launch.audit", None)
    code, _, err = audited(write(simulated(tiny_cache), config), capsys)
    assert code == 2 and "audit needs zerofleet.launch.audit: pip install" in err


# -- silos -------------------------------------------------------------------------------------------------------------
@pytest.fixture
def silos(config, tiny_cache) -> RunFolder:
    """A run of two that are both exact, and the record of an outer round with both in it."""
    folder = RunFolder(config.run.storage, "several")
    members = {"a": {"files": ["a.txt"]}, "b": {"files": ["b.txt"]}}
    folder.create(json.dumps({**config.model_dump(mode="json", exclude={"silo"}), "silos": {"members": members}}))
    for name in members:
        write(simulated(tiny_cache), config, f"{folder.storage.url}/silos", name)
    record = RoundRecord(2, {"a": 10, "b": 1234})
    folder.storage.create("outer/round-00000002/round.json", json.dumps(asdict(record)).encode())
    return folder


def test_silos_are_audited_one_by_one(silos, capsys):
    code, out, _ = audited(silos, capsys)
    assert code == 0 and "a: exact" in out and "b: exact" in out
    code, out, _ = audited(silos, capsys, "--json")
    facts = json.loads(out)
    assert code == 0 and facts["exact"] and facts["silos"].keys() == {"a", "b"} and facts["missing"] == {}


@pytest.mark.parametrize(
    ("has_round", "why"), [(True, "1,234 tokens of it are in outer round 2"), (False, "it is in the run's job.yaml")]
)
def test_a_silo_whose_folder_is_missing_is_found(silos, capsys, has_round, why):
    silos.storage.remove("silos/b")
    if not has_round:
        silos.storage.remove("outer/round-00000002")
    code, out, _ = audited(silos, capsys)
    assert code == 1 and "a: exact" in out and "b: NOT EXACT, nothing of it is proven" in out
    assert f"silo b has no folder: {why}; restore {silos.storage.path('silos/b')}" in out
    code, out, _ = audited(silos, capsys, "--json")
    facts = json.loads(out)
    assert (code, facts["exact"], facts["silos"].keys(), facts["missing"]) == (1, False, {"a"}, {"b": why})


def test_a_run_whose_silos_are_all_missing_is_not_exact(silos, capsys):
    silos.storage.remove("silos")
    code, out, _ = audited(silos, capsys)
    assert code == 1 and "a: NOT EXACT" in out and "b: NOT EXACT" in out and "nothing to prove" not in out


def test_silos_that_have_not_begun_have_nothing_to_prove(silos, capsys):
    silos.storage.remove("silos")
    silos.storage.remove("outer")
    code, out, _ = audited(silos, capsys)
    assert code == 0 and "there is nothing to prove" in out
