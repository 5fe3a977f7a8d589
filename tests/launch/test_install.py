"""The scripts around the installation, without installing: usage, interpreter, marker, lock, what a kill left behind."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]

ROOT = Path(__file__).parents[2]

FAKE_PIP = """#!/usr/bin/env bash
# Stands in for .venv/bin/python: answers `-m pip --version`, notes every other call, and "installs".
[ "$*" = "-m pip --version" ] && exit 0
printf '%s\\n' "$*" >>"$CALLS"
case "$*" in
    *"-e ."*) sleep "${PIP_TIME:-0}"; exit "${PIP_CODE:-0}" ;;
    *trainer.ops) exit "${OPS_CODE:-0}" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A checkout with a .venv whose interpreter only notes what it is asked."""
    (tmp_path / "launch").mkdir()
    for name in ("launch/install.sh", "launch/submit.sh", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    (tmp_path / ".venv/lib/python3.11/site-packages").mkdir(parents=True)
    python.write_text(FAKE_PIP)
    python.chmod(0o755)
    return tmp_path


def environment(checkout: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "CALLS": str(checkout / "calls"), "PYTHON": sys.executable, **more}


def install(checkout: Path, extras: str = "train", **more: str) -> subprocess.CompletedProcess:
    command = [checkout / "launch/install.sh", extras]
    return subprocess.run(command, capture_output=True, text=True, env=environment(checkout, **more), timeout=60)


def calls(checkout: Path) -> list[str]:
    path = checkout / "calls"
    return path.read_text().splitlines() if path.exists() else []


def test_submit_without_arguments_prints_its_usage(checkout):
    result = subprocess.run([checkout / "launch/submit.sh"], capture_output=True, text=True, timeout=30)
    assert result.returncode == 2 and "usage: ./launch/submit.sh RECIPE" in result.stderr
    assert calls(checkout) == []


def test_torch_comes_first_then_zerofleet_then_the_ops_and_then_never_again(checkout):
    result = install(checkout)
    assert result.returncode == 0, result.stderr
    first, second, third = calls(checkout)
    assert first.endswith("constraints.txt torch") and "-e .[train]" in second and third == "-m zerofleet.trainer.ops"
    assert install(checkout).stdout == "" and len(calls(checkout)) == 3


def test_changed_requirements_and_more_extras_are_installed(checkout):
    install(checkout)
    assert install(checkout, "train,dev").returncode == 0
    assert "-e .[dev,train]" in calls(checkout)[-2]
    assert install(checkout, "dev").stdout == "", "a subset is there already"
    with (checkout / "constraints.txt").open("a") as file:
        file.write("# changed\n")
    assert "installing" in install(checkout).stdout


def test_an_extra_is_added_to_those_that_are_there(checkout):
    install(checkout, "train")
    install(checkout, "dev")
    assert "-e .[dev,train]" in calls(checkout)[-2]


def test_a_failed_installation_shows_the_log_and_is_tried_again(checkout):
    result = install(checkout, PIP_CODE="7")
    assert result.returncode == 1
    assert "installing zerofleet[train] failed" in result.stderr and "(exit code 7)" in result.stderr
    assert "install.log" in result.stderr
    assert "installing" in install(checkout).stdout


@pytest.mark.parametrize(("ops_code", "code"), [("1", 0), ("137", 1)])
def test_a_compiler_that_fails_is_no_obstacle_but_a_kill_is(checkout, ops_code, code):
    assert install(checkout, OPS_CODE=ops_code).returncode == code
    assert bool(list((checkout / ".venv").glob(".zerofleet-*"))) == (code == 0)


def test_no_suitable_python_is_said(checkout):
    result = install(checkout, PYTHON="/nowhere/python3.11")
    assert result.returncode == 1
    assert "error: no Python 3.11 or 3.12 among: /nowhere/python3.11" in result.stderr


def test_a_package_whose_installation_was_cut_short_is_removed(checkout):
    """pip writes RECORD last, and takes a package without one for installed."""
    packages = checkout / ".venv/lib/python3.11/site-packages"
    for name, file in (("whole-1.0.dist-info", "RECORD"), ("half-1.0.dist-info", "METADATA")):
        (packages / name).mkdir()
        (packages / name / file).touch()
    assert install(checkout).returncode == 0
    assert [path.name for path in packages.iterdir()] == ["whole-1.0.dist-info"]


def test_a_killed_installation_is_continued(checkout):
    command = [checkout / "launch/install.sh", "train"]
    process = subprocess.Popen(
        command, env=environment(checkout, PIP_TIME="60"), stdout=subprocess.PIPE, start_new_session=True
    )
    while not any("-e ." in call for call in calls(checkout)):
        time.sleep(0.05)
    os.killpg(process.pid, 9)
    process.communicate()
    result = install(checkout)
    assert result.returncode == 0 and "waiting" not in result.stdout
    assert len(list((checkout / ".venv").glob(".zerofleet-*"))) == 1


def test_two_at_once_take_turns(checkout):
    command = [checkout / "launch/install.sh", "train"]
    first = subprocess.Popen(command, env=environment(checkout, PIP_TIME="3"), stdout=subprocess.PIPE)
    while not any("-e ." in call for call in calls(checkout)):
        time.sleep(0.05)
    second = install(checkout)
    assert "another installation into .venv is running: waiting for it" in second.stdout
    assert second.returncode == 0 and first.wait(30) == 0
    assert sum("-e ." in call for call in calls(checkout)) == 1


def test_a_broken_environment_is_made_anew(checkout):
    (checkout / ".venv/bin/python").write_text("#!/bin/sh\nexit 1\n")
    (checkout / "venv.py").write_text("")
    stand_in = checkout / "python"
    stand_in.write_text(
        '#!/bin/sh\ncase "$*" in "-m venv "*) mkdir -p "$3/bin" "$3/lib/python3.11"; cp "$GOOD" "$3/bin/python" ;; esac\n'
    )
    stand_in.chmod(0o755)
    good = checkout / "good"
    good.write_text(FAKE_PIP)
    good.chmod(0o755)
    result = install(checkout, PYTHON=str(stand_in), GOOD=str(good))
    assert result.returncode == 0, result.stderr
    assert "making .venv" in result.stdout


def test_the_pins_have_no_local_versions():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all("==" in line and "+" not in line for line in lines)
    assert "torch==2.13.0" in lines


@pytest.mark.parametrize("script", ["launch/install.sh", "launch/submit.sh", ".ci/run"])
def test_scripts_are_executable_and_parse(script):
    assert os.access(ROOT / script, os.X_OK)
    subprocess.run(["bash", "-n", ROOT / script], check=True)
