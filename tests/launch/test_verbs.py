"""Every verb in this process, with a driver that needs no Ray."""

import json
import os
import signal
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from zerofleet.launch import cli
from zerofleet.launch.backends import local
from zerofleet.launch.drivers import driver_records
from zerofleet.trainer.errors import StorageError
from zerofleet.trainer.process_id import ProcessId
from zerofleet.trainer.run_folder import RunFolder

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]


def folder(name: str = "a") -> RunFolder:
    return RunFolder(os.environ["ZEROFLEET_STORAGE"], name)


def driver_pid(name: str = "a") -> int:
    return driver_records(folder(name))[-1].pid


def until(condition) -> None:
    ends_at = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < ends_at
        time.sleep(0.02)


# -- submit --------------------------------------------------------------------------------------------------------
def test_submit_follows_a_run_to_its_end_and_sums_it_up(zerofleet, drive):
    drive("finish")
    code, out, err = zerofleet("submit", "recipe.yaml", "run.name=a")
    assert (code, err) == (0, "")
    for part in (
        "run a in ",
        "preparing: tokenize 100%  12 MB",
        "step 3/3  loss 6.0000",
        "step 3: checkpoint written",
        "a: FINISHED at step 3 of 3",
        "9.5000 (step 0) -> 6.5000 (step 3): it fell by 3.0000 nats",
        "AutoModelForCausalLM.from_pretrained('/somewhere/export')",
    ):
        assert part in out, part
    assert (folder().storage.local_path() / "job.yaml").exists()


def test_submit_with_json_writes_only_json_lines(zerofleet, drive):
    drive("finish")
    code, out, _ = zerofleet("submit", "recipe.yaml", "run.name=a", "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and (lines[0]["kind"], lines[0]["run"]) == ("run", "a")
    assert [line["step"] for line in lines if line["kind"] == "step"] == [1, 2, 3]
    assert lines[-1]["kind"] == "summary" and lines[-1]["state"] == "FINISHED" and lines[-1]["checkpoints"] == [3]


def test_a_run_without_a_name_is_named_after_its_recipe(zerofleet, drive, recipe):
    drive("finish")
    recipe.rename(recipe.with_name("My Recipe!.yaml"))
    zerofleet("submit", "My Recipe!.yaml")
    zerofleet("submit", "My Recipe!.yaml")
    names = os.listdir(os.environ["ZEROFLEET_STORAGE"])
    assert len(names) == 2 and all(name.startswith("my-recipe-2") for name in names)


def test_a_name_that_is_taken(zerofleet, drive):
    drive("finish")
    zerofleet("submit", "recipe.yaml", "run.name=a")
    code, _, err = zerofleet("submit", "recipe.yaml", "run.name=a")
    assert code == 2 and "run 'a' exists already" in err
    assert len(driver_records(folder())) == 1


def test_a_run_that_has_trained_is_never_cleared_away(zerofleet, drive):
    drive("user_error_after_steps")
    assert zerofleet("submit", "recipe.yaml", "run.name=a")[0] == 2
    code, _, err = zerofleet("submit", "recipe.yaml", "run.name=a")
    assert code == 2 and "run 'a' exists already" in err and folder().storage.exists("metrics")


@pytest.mark.parametrize("script", ["user_error", "rank_user_error"])
def test_a_run_that_failed_by_a_mistake_before_its_first_checkpoint_gives_its_name_back(zerofleet, drive, script):
    """Otherwise a mended recipe would trip over the folder of its first try."""
    drive(script)
    assert zerofleet("submit", "recipe.yaml", "run.name=a", "data.sequence_length=32")[0] == 2
    assert "mend the recipe and submit it again" in zerofleet("status", "a")[1]
    drive("finish")
    code, _, err = zerofleet("submit", "recipe.yaml", "run.name=a")
    assert code == 0 and "run a failed before its first checkpoint (" in err and "its folder is removed" in err
    assert "sequence_length: 64" in folder().job_yaml() and len(driver_records(folder())) == 1


def test_a_driver_that_cannot_be_started_leaves_nothing_behind(zerofleet, drive, monkeypatch):
    def full(run, number):
        raise StorageError("the disk is full")

    monkeypatch.setattr(local, "_log_file", full)
    assert zerofleet("submit", "recipe.yaml", "run.name=a")[0] == 1
    assert not folder().storage.exists("job.yaml")


def test_a_run_that_began_or_may_begin_keeps_its_name(zerofleet, drive):
    drive("die")
    zerofleet("submit", "recipe.yaml", "run.name=a")
    assert zerofleet("submit", "recipe.yaml", "run.name=a")[0] == 2
    drive("stoppable")
    zerofleet("submit", "recipe.yaml", "run.name=b", "--detach")
    assert zerofleet("submit", "recipe.yaml", "run.name=b")[0] == 2
    zerofleet("stop", "b")
    drive("no_claim")
    zerofleet("submit", "recipe.yaml", "run.name=c")
    assert zerofleet("submit", "recipe.yaml", "run.name=c")[0] == 2, "its driver may be about to claim it"


def test_a_run_that_was_stopped_before_its_first_attempt_keeps_its_folder_and_its_name(zerofleet, drive):
    drive("stoppable")
    zerofleet("submit", "recipe.yaml", "run.name=a", "--detach")
    assert zerofleet("stop", "a")[0] == 0
    folder().storage.remove("checkpoints")
    assert not folder().attempts() and not folder().checkpoints()
    code, _, err = zerofleet("submit", "recipe.yaml", "run.name=a")
    assert code == 2 and "run 'a' exists already" in err
    assert len(driver_records(folder())) == 1 and folder().requests()


def test_a_mistake_of_an_earlier_driver_is_not_the_reason_of_a_later_failure(zerofleet, drive):
    drive("user_error")
    zerofleet("submit", "recipe.yaml", "run.name=a")
    drive("fail")
    zerofleet("resume", "a")
    assert zerofleet("submit", "recipe.yaml", "run.name=a")[0] == 2
    assert "resume a" in zerofleet("status", "a")[1]


def test_a_failed_run_says_why_once_and_last(zerofleet, drive):
    drive("fail")
    code, out, err = zerofleet("submit", "recipe.yaml", "run.name=a")
    assert code == 1
    assert err == "error: rank 1 was killed. Stopping: three times in a row\n"
    assert "rank 1 was killed" in out and "Stopping" not in out


def test_a_mistake_that_only_the_driver_can_see(zerofleet, drive):
    drive("user_error")
    code, out, err = zerofleet("submit", "recipe.yaml", "run.name=a")
    assert (code, err) == (2, "error: data.files matches nothing\n")
    assert "matches nothing" not in out


def test_a_driver_that_dies_is_said_to_be_dead_with_its_last_words(zerofleet, drive):
    drive("die")
    code, _, err = zerofleet("submit", "recipe.yaml", "run.name=a")
    assert code == 1
    assert "was killed by signal 9" in err and "the last words of the driver" in err and "resume a" in err


def test_a_driver_that_never_claims_the_run(zerofleet, drive):
    drive("no_claim")
    code, _, err = zerofleet("submit", "recipe.yaml", "run.name=a")
    assert code == 2 and "somebody else drives it" in err
    code, out, _ = zerofleet("status", "a")
    assert code == 0 and "DEAD" in out and "no driver has taken it" in out


@pytest.mark.parametrize(("script", "code"), [("stoppable", 0), ("no_claim", 2)])
def test_detach_returns_when_the_driver_has_the_run(zerofleet, drive, script, code):
    drive(script)
    started = time.monotonic()
    assert zerofleet("submit", "recipe.yaml", "run.name=a", "--detach")[0] == code
    assert time.monotonic() - started < 20
    if script == "stoppable":
        assert zerofleet("stop", "a")[0] == 0


def test_an_interrupt_detaches_and_the_run_goes_on(zerofleet, drive):
    drive("stoppable")

    def interrupt() -> None:
        until(lambda: folder().storage.exists("metrics"))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    code, _, err = zerofleet("submit", "recipe.yaml", "run.name=a")
    thread.join()
    assert code == 130 and "detached: run a goes on" in err
    assert psutil.pid_exists(driver_pid())
    code, out, _ = zerofleet("status", "a")
    assert "RUNNING" in out and "alive" in out
    assert zerofleet("stop", "a")[0] == 0


# -- status, list, logs --------------------------------------------------------------------------------------------
def test_status_and_list_of_runs_in_every_state(zerofleet, drive):
    for name, script in (("done", "finish"), ("broken", "fail"), ("gone", "die"), ("live", "stoppable")):
        drive(script)
        zerofleet("submit", "recipe.yaml", f"run.name={name}", *(["--detach"] if name == "live" else []))
    until(lambda: folder("live").storage.exists("metrics"))
    expected = {"done": "FINISHED", "broken": "FAILED", "gone": "DEAD", "live": "RUNNING"}
    for name, state in expected.items():
        code, out, _ = zerofleet("status", name, "--json")
        assert code == 0 and json.loads(out)["state"] == state
    _, out, _ = zerofleet("list", "--json")
    assert {line["run"]: line["state"] for line in map(json.loads, out.splitlines())} == expected
    _, out, _ = zerofleet("list")
    assert out.splitlines()[0].split() == ["RUN", "STATE", "STEP", "LOSS", "HELD-OUT"]
    assert "resume gone" in zerofleet("status", "gone")[1]
    assert zerofleet("stop", "live")[0] == 0


def test_list_leaves_out_what_cannot_be_read_and_says_so(zerofleet, drive):
    drive("finish")
    zerofleet("submit", "recipe.yaml", "run.name=a")
    folder("odd").storage.create("job.yaml", b"train: {steps: none}")
    folder("no-run").storage.create("file", b"")
    code, out, err = zerofleet("list")
    assert code == 0 and len(out.splitlines()) == 2
    assert err.startswith("warning: odd cannot be read: ") and "no-run" not in err


def test_a_driver_on_another_host_lives_while_it_speaks(zerofleet, drive):
    drive("die")
    zerofleet("submit", "recipe.yaml", "run.name=a")
    path = folder().storage.local_path("drivers/0001.json")
    record = json.loads(path.read_text())
    assert record["host"] == socket.gethostname()
    record |= {"host": "elsewhere", "process": str(replace(ProcessId.parse(record["process"]), boot="another"))}
    path.write_text(json.dumps(record))
    assert json.loads(zerofleet("status", "a", "--json")[1])["driver_alive"] is True
    segment = folder().storage.local_path("metrics/attempt-0001/segment-00000.jsonl")
    old = [{**json.loads(line), "start": time.time() - 100} for line in segment.read_text().splitlines()]
    segment.write_text("".join(json.dumps(line) + "\n" for line in old))
    events = folder().storage.local_path("events/attempt-0001/segment-00000.jsonl")
    events.write_text("")
    path.write_text(json.dumps({**record, "started_at": time.time() - 100}))
    assert json.loads(zerofleet("status", "a", "--json")[1])["driver_alive"] is False


def test_another_process_with_the_drivers_number_is_not_the_driver(zerofleet, drive):
    drive("die")
    zerofleet("submit", "recipe.yaml", "run.name=a")
    path = folder().storage.local_path("drivers/0001.json")
    record = json.loads(path.read_text())
    mine = str(replace(ProcessId.parse(record["process"]), pid=os.getpid()))
    path.write_text(json.dumps({**record, "pid": os.getpid(), "process": mine}))
    assert json.loads(zerofleet("status", "a", "--json")[1])["driver_alive"] is False


def test_logs_of_the_driver_and_of_ranks(zerofleet, drive):
    drive("die")
    zerofleet("submit", "recipe.yaml", "run.name=a")
    assert zerofleet("logs", "a")[:2] == (0, "the last words of the driver\n")
    for attempt, text in ((1, "first\n"), (2, "second\n")):
        folder().storage.create(f"logs/attempt-{attempt:04d}/rank-00001.log", text.encode())
    assert zerofleet("logs", "a", "--rank", "1")[1] == "second\n"
    assert zerofleet("logs", "a", "--rank", "1", "--attempt", "1")[1] == "first\n"
    assert zerofleet("logs", "a", "-f", "--rank", "1")[1] == "second\n"
    code, _, err = zerofleet("logs", "a", "--rank", "0")
    assert code == 4 and "there are rank-00001.log" in err
    code, _, err = zerofleet("logs", "a", "--rank", "1", "--attempt", "9")
    assert code == 4 and "there are attempt-0001, attempt-0002" in err
    assert zerofleet("logs", "a", "--attempt", "1")[0] == 2


def test_logs_follow_goes_on_into_the_next_attempt_and_ends_with_the_run(zerofleet, drive, capsys):
    drive("stoppable")
    zerofleet("submit", "recipe.yaml", "run.name=a", "--detach")
    folder().storage.create("logs/attempt-0001/rank-00000.log", b"one\n")
    codes = []
    thread = threading.Thread(target=lambda: codes.append(cli.main(["logs", "a", "-f", "--rank", "0"])))
    thread.start()
    with folder().storage.local_path("logs/attempt-0001/rank-00000.log").open("a") as log:
        log.write("more\n")
    time.sleep(0.5)
    folder().storage.create("logs/attempt-0002/rank-00000.log", b"two\n")
    time.sleep(0.5)
    cli.main(["stop", "a"])
    thread.join(20)
    out = capsys.readouterr().out
    assert codes == [0]
    assert out.index("one\nmore\n") < out.index("==> logs/attempt-0002/rank-00000.log <==\ntwo\n")


def test_logs_follow_waits_for_the_log_of_an_attempt_that_has_just_begun(zerofleet, drive, capsys):
    drive("stoppable")
    zerofleet("submit", "recipe.yaml", "run.name=a", "--detach")
    assert zerofleet("logs", "a", "--rank", "1")[0] == 4, "without -f nothing is waited for"
    assert zerofleet("logs", "a", "-f", "--rank", "7")[0] == 4, "no attempt will have this rank"
    codes = []
    thread = threading.Thread(target=lambda: codes.append(cli.main(["logs", "a", "-f", "--rank", "1"])))
    thread.start()
    time.sleep(0.5)
    folder().storage.create("logs/attempt-0001/rank-00001.log", b"old\n")
    time.sleep(0.5)
    folder().storage.create("logs/attempt-0002/agent-00000.log", b"")
    time.sleep(0.5)
    assert thread.is_alive()
    folder().storage.create("logs/attempt-0002/rank-00001.log", b"new\n")
    time.sleep(0.5)
    folder().storage.create("logs/attempt-0003/agent-00000.log", b"")
    cli.main(["stop", "a"])
    thread.join(20)
    captured = capsys.readouterr()
    assert (codes, captured.err) == ([0], "")
    assert "old\n\n==> logs/attempt-0002/rank-00001.log <==\nnew\n" in captured.out


def test_status_of_a_users_mistake_before_any_attempt_does_not_offer_to_resume(zerofleet, drive):
    drive("user_error")
    zerofleet("submit", "recipe.yaml", "run.name=a", "--detach")
    until(lambda: not psutil.pid_exists(driver_pid()) or psutil.Process(driver_pid()).status() == "zombie")
    _, out, _ = zerofleet("status", "a")
    assert "mend the recipe and submit it again" in out and "resume" not in out


@pytest.mark.parametrize("verb", ["status", "logs", "stop", "resume", "export", "explain", "report"])
def test_a_run_that_is_not_there(zerofleet, verb):
    code, out, err = zerofleet(verb, "nowhere")
    assert (code, out) == (4, "")
    assert "no run 'nowhere'" in err


# -- stop and resume -----------------------------------------------------------------------------------------------
def test_stop_waits_for_the_checkpoint_and_resume_goes_on(zerofleet, drive):
    drive("stoppable")
    zerofleet("submit", "recipe.yaml", "run.name=a", "train.steps=100000", "--detach")
    until(lambda: folder().storage.exists("metrics"))
    code, out, _ = zerofleet("stop", "a")
    assert code == 0 and "is STOPPED at step" in out and "resume a" in out
    assert folder().checkpoints()
    drive("finish")
    code, out, _ = zerofleet("resume", "a", "train.zero_stage=2")
    assert code == 0 and "FINISHED" in out
    assert driver_records(folder())[-1].overrides == ("train.zero_stage=2",)


def test_stop_of_a_driver_that_does_not_hear(zerofleet, drive):
    drive("deaf")
    zerofleet("submit", "recipe.yaml", "run.name=a", "--detach")
    code, _, err = zerofleet("stop", "a", "--timeout", "0.5")
    assert code == 3 and "0.5 s after it was asked to stop; the request stands" in err
    os.kill(driver_pid(), signal.SIGKILL)


def test_stop_of_a_driver_that_dies_meanwhile(zerofleet, drive):
    drive("deaf")
    zerofleet("submit", "recipe.yaml", "run.name=a", "--detach")
    killer = threading.Timer(0.5, lambda: os.kill(driver_pid(), signal.SIGKILL))
    killer.start()
    code, _, err = zerofleet("stop", "a")
    assert code == 1 and "died before it had stopped the run" in err


def test_stop_of_what_does_not_run(zerofleet, drive):
    drive("finish")
    zerofleet("submit", "recipe.yaml", "run.name=done")
    assert "FINISHED already" in zerofleet("stop", "done")[1]
    drive("die")
    zerofleet("submit", "recipe.yaml", "run.name=dead")
    code, _, err = zerofleet("stop", "dead")
    assert code == 1 and "does not run: driver 1 on" in err and "newest checkpoint is of step 1" in err
    assert folder("dead").requests() == [], "a request that is left behind would stop the next driver"


def test_resume_refuses_what_is_frozen_and_what_is_wrong(zerofleet, drive):
    drive("die")
    zerofleet("submit", "recipe.yaml", "run.name=a")
    for override in (
        "run.seed=1",
        "run.init_from=b@500",
        "data.sequence_length=32",
        "train.global_batch_size=4",
        "model.config.hidden_size=8",
    ):
        code, _, err = zerofleet("resume", "a", override)
        assert code == 2 and f"{override.partition('=')[0]} is frozen for the life of a run" in err
    assert zerofleet("resume", "a", "train.stepz=1")[0] == 2
    assert zerofleet("resume", "a", "deepspeed.train_batch_size=1")[0] == 2
    assert len(driver_records(folder())) == 1


def test_resume_leaves_a_living_driver_alone(zerofleet, drive):
    drive("stoppable")
    zerofleet("submit", "recipe.yaml", "run.name=a", "--detach")
    code, _, err = zerofleet("resume", "a")
    assert code == 2 and "is running" in err and "alive" in err
    assert zerofleet("stop", "a")[0] == 0


def test_resume_of_a_finished_run_says_so_unless_there_are_more_steps(zerofleet, drive):
    drive("finish")
    zerofleet("submit", "recipe.yaml", "run.name=a")
    code, out, _ = zerofleet("resume", "a")
    assert code == 0 and "is finished: step 3 of 3" in out and "train.steps=6" in out
    assert len(driver_records(folder())) == 1
    assert zerofleet("resume", "a", "train.steps=6")[0] == 0
    assert len(driver_records(folder())) == 2


def test_resume_does_not_go_back_below_the_steps_that_are_done(zerofleet, drive):
    for name, script in (("done", "finish"), ("stopped", "stoppable")):
        drive(script)
        zerofleet("submit", "recipe.yaml", f"run.name={name}", *(["--detach"] if script == "stoppable" else []))
    until(lambda: len(list(folder("stopped").read("metrics"))) >= 3)
    zerofleet("stop", "stopped")
    for name in ("done", "stopped"):
        code, out, err = zerofleet("resume", name, "train.steps=2")
        assert (code, out) == (2, "") and "steps, more than train.steps=2: it cannot go back" in err
        assert len(driver_records(folder(name))) == 1


def test_a_resume_may_keep_its_prepared_data_elsewhere(zerofleet, drive, tmp_path):
    from zerofleet.launch.drivers import effective_job

    drive("die")
    zerofleet("submit", "recipe.yaml", "run.name=a")
    assert zerofleet("resume", "a", "data.cache=here: too")[0] == 1
    assert effective_job(folder()).data.cache == str(tmp_path / "here: too"), "wherever it is resumed from next"


def test_status_counts_the_attempts_that_were_claimed(zerofleet, drive):
    drive("die")
    zerofleet("submit", "recipe.yaml", "run.name=a")
    drive("user_error")  # says its state under the number of an attempt that it never claims
    zerofleet("resume", "a")
    assert json.loads(zerofleet("status", "a", "--json")[1])["attempt"] == 1


def test_overrides_of_all_resumes_add_up(zerofleet, drive):
    drive("die")
    zerofleet("submit", "recipe.yaml", "run.name=a")
    zerofleet("resume", "a", "train.steps=50", "train.zero_stage=2")
    zerofleet("resume", "a", "train.zero_stage=3")
    from zerofleet.launch.drivers import effective_job

    job = effective_job(folder())
    assert (job.train.steps, job.train.zero_stage) == (50, 3)
    assert json.loads(zerofleet("status", "a", "--json")[1])["steps"] == 50


def test_a_run_that_was_moved_is_found_where_it_lies_now(zerofleet, drive, tmp_path):
    from zerofleet.launch.drivers import effective_job

    drive("die")
    zerofleet("submit", "recipe.yaml", "run.name=a")
    (tmp_path / "elsewhere").mkdir()
    Path(folder().storage.path()).rename(tmp_path / "elsewhere/a")
    moved = RunFolder.open(str(tmp_path / "elsewhere/a"))
    assert effective_job(moved).run.storage == str(tmp_path / "elsewhere")
    drive("finish")
    assert zerofleet("resume", str(tmp_path / "elsewhere/a"))[0] == 0
