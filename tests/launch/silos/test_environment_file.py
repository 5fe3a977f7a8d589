"""A silo's environment file: what is read, what is refused, and whose driver gets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.launch.silos.conftest import RECIPE
from zerofleet.launch import cli
from zerofleet.launch.backends import local
from zerofleet.launch.config import load_job
from zerofleet.launch.silos.environment_file import check_environment_files, read_environment
from zerofleet.launch.silos.jobs import silo_job, silo_run
from zerofleet.launch.silos.process import SiloProcess
from zerofleet.trainer.credentials import VARIABLE
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.run_folder import RunFolder

TOKEN = "tok-5f2c91aa07"


def written(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_lines_of_names_and_values(tmp_path):
    text = "# of the store\n\nexport STORE_KEY = 'a b#c='\nSTORE_TOKEN=\"x\"\n  REGION=north  \nEMPTY=\n"
    found = read_environment("a", str(written(tmp_path / "a.env", text)))
    names = "STORE_KEY STORE_TOKEN REGION EMPTY"
    assert found == {"STORE_KEY": "a b#c=", "STORE_TOKEN": "x", "REGION": "north", "EMPTY": "", VARIABLE: names}
    assert read_environment("a", None) == {}


@pytest.mark.parametrize(
    ("text", "mode", "says"),
    [
        (f"TOKEN={TOKEN}", 0o640, r"can be read or written by others \(mode 640\): chmod 600 it"),
        (f"TOKEN={TOKEN}", 0o604, r"mode 604"),
        (f"A=1\n{TOKEN}\n", 0o600, "line 2 is not NAME=value"),
        (f"A B={TOKEN}\n", 0o600, "line 1 is not NAME=value"),
        (None, 0o600, r"cannot be read \(No such file or directory\): it has to be on the machine of the run's driver"),
    ],
)
def test_what_is_refused_is_named_and_nothing_of_it_told(tmp_path, text, mode, says):
    path = tmp_path / "a.env"
    if text is not None:
        written(path, text, mode)
    with pytest.raises(UserError, match=rf"silos.members.a.environment_file: {path}.*{says}") as caught:
        read_environment("a", str(path))
    assert TOKEN not in str(caught.value)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = written(tmp_path / "a.env", "")
    path.write_bytes(b"A=\xff")
    with pytest.raises(UserError, match="is not UTF-8"):
        read_environment("a", str(path))


@pytest.mark.parametrize("mode", [None, 0o644])
def test_a_run_does_not_start_without_it(recipe, tmp_path, capsys, monkeypatch, mode):
    if mode is not None:
        written(tmp_path / "b.env", f"TOKEN={TOKEN}", mode)
    recipe.write_text(RECIPE.replace("weight: 2.0", "environment_file: b.env"))
    code = cli.main(["submit", str(recipe), f"run.storage={tmp_path}/runs", "cluster.cpus_per_rank=0.1", "--detach"])
    assert code == 2 and f"silos.members.b.environment_file: {tmp_path}/b.env" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_the_job_has_the_path_and_a_silos_own_job_not_even_that(recipe, tmp_path):
    written(tmp_path / "b.env", f"TOKEN={TOKEN}")
    recipe.write_text(RECIPE.replace("weight: 2.0", "environment_file: b.env"))
    job = load_job(recipe)
    check_environment_files(job)
    assert f"environment_file: {tmp_path}/b.env" in job.to_yaml() and TOKEN not in job.to_yaml()
    assert "b.env" not in silo_job(job, "b", None).to_yaml()


def test_a_silos_driver_gets_its_own_and_no_other_silos(recipe, tmp_path, monkeypatch):
    """Read anew at every start; what the run's driver itself says to a silo stands above it."""
    monkeypatch.setattr(local, "DRIVER_MODULE", "tests.launch.fake_driver")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    monkeypatch.setenv("FAKE_DRIVER", "tell_environment")
    path = written(tmp_path / "b.env", f"TOKEN={TOKEN}\nFROM_RUN=from-file\n")
    job = load_job(recipe, [f"run.storage={tmp_path}/runs", "run.name=r"])
    run = RunFolder(f"{tmp_path}/runs", "r")
    processes = {
        name: SiloProcess(
            name,
            silo_run(run, name),
            silo_job(job, name, None),
            {"FROM_RUN": "from-run", "TOLD": str(tmp_path / name)},
            lambda silo, event: None,
            str(path) if name == "b" else None,
        )
        for name in "ab"
    }

    def told(name: str) -> dict[str, str]:
        processes[name].start()
        assert processes[name]._driver.wait(60) == 0
        return json.loads((tmp_path / name).read_text())

    first = {name: told(name) for name in "ab"}
    assert "TOKEN" not in first["a"] and VARIABLE not in first["a"]
    assert (first["b"]["TOKEN"], first["b"]["FROM_RUN"], first["b"][VARIABLE]) == (TOKEN, "from-run", "TOKEN FROM_RUN")
    written(path, "TOKEN=another-token")
    assert told("b")["TOKEN"] == "another-token"
    assert not [file for file in (tmp_path / "runs").rglob("*") if file.is_file() and TOKEN in file.read_text()]
