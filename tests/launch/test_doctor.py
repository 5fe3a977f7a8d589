import os

import pytest

from zerofleet.launch.cli import main
from zerofleet.launch.commands import doctor
from zerofleet.trainer import ops


def test_this_environment_has_what_it_needs(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("ZEROFLEET_STORAGE", str(tmp_path))
    checks = {check.name: check for check in doctor.examine()}
    assert checks["packages"].level != "fail", checks["packages"].text
    assert checks["storage"].level == "ok"
    assert str(len(os.sched_getaffinity(0))) in checks["machine"].text


def test_a_missing_package_and_a_wrong_version_fail(monkeypatch):
    monkeypatch.setattr(
        doctor.metadata, "requires", lambda name: ["psutil>=999", "no-such-package", "pyyaml; extra == 'dev'"]
    )
    check = doctor.packages()
    assert check.level == "fail"
    assert (
        "needed is >=999" in check.text and "no-such-package is missing" in check.text and "pip install" in check.text
    )


def test_versions_that_were_not_tested_warn(monkeypatch):
    monkeypatch.setattr(doctor, "_tested_versions", lambda: {"pyyaml": "1.0"})
    check = doctor.packages()
    assert check.level == "warn" and "tested: 1.0" in check.text


def test_the_pins_are_read_and_a_local_version_is_the_public_one():
    pins = doctor._tested_versions()
    assert pins["torch"] == "2.13.0" and pins["deepspeed"] == "0.19.8"
    assert doctor._public("2.13.0+cpu") == "2.13.0"


def test_stale_locks_are_removed_and_said(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = tmp_path / ops.COMMUNICATION_OP / "lock"
    lock.parent.mkdir()
    lock.touch()
    checks = list(doctor.op_builds())
    assert any("is not built" in check.text for check in checks)
    assert any("removed a stale lock" in check.text for check in checks)
    assert not lock.exists()


def test_without_a_compiler_it_says_what_to_install(monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/c++")
    assert "package g++" in next(doctor.op_builds()).text


def test_a_storage_that_cannot_be_written_fails(tmp_path):
    (tmp_path / "file").touch()
    assert doctor.storage(f"{tmp_path}/file/runs").level == "fail"


@pytest.mark.parametrize(("least", "level"), [(0, "ok"), (10**9, "warn")])
def test_little_space_warns_with_the_remedy(tmp_path, least, level):
    check = doctor._space("disk", tmp_path / "not/there/yet", least, "free some")
    assert check.level == level and ("free some" in check.text) == (level == "warn")


def test_any_failure_is_in_the_exit_code(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "examine", lambda: iter([doctor.Check("ok", "a", "x"), doctor.Check("fail", "b", "y")]))
    assert main(["doctor"]) == 1
    monkeypatch.setattr(doctor, "examine", lambda: iter([doctor.Check("warn", "a", "x")]))
    assert main(["doctor"]) == 0


def test_options_that_belong_to_another_place_are_refused(capsys):
    for arguments, said in (
        (["--profile", "x"], "go with --backend kuberay"),
        (["--backend", "kuberay", "--address", "http://h:8265"], "goes with --backend ray"),
        (["--backend", "ray"], "needs --address"),
        (["--backend", "ray", "--address", "http://h:8265", "--leaks"], "on the hosts of the Ray cluster"),
        (["--recipe", "x"], "goes with --address or --backend kuberay"),
        (["--backend", "kuberay", "--recipe", "x"], "give --profile too"),
    ):
        assert main(["doctor", *arguments]) == 2
        assert said in capsys.readouterr().err
    assert main(["doctor", "--backend", "kuberay", "--profile", "no-such.yaml"]) == 4


def test_leaks_are_told_and_nothing_is_removed(capsys, monkeypatch):
    from zerofleet.cluster import leaks

    monkeypatch.setattr(leaks, "local_leaks", lambda: iter([]))
    assert main(["doctor", "--leaks"]) == 0
    assert capsys.readouterr().out.split() == ["ok", "leaks", "none", "on", "this", "machine"]
    monkeypatch.setattr(leaks, "local_leaks", lambda: iter([doctor.Check("warn", "snapshots", "of a")]))
    assert main(["doctor", "--leaks"]) == 0
    assert capsys.readouterr().out == "warn  snapshots    of a\n"
