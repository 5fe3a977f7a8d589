"""The image's recipe, read: nothing here builds it. It has to agree with what is rendered, pinned and installed elsewhere."""

from __future__ import annotations

import fnmatch
import importlib.util
import re
import tomllib
from pathlib import PurePosixPath

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.k8s.support import CPU, ROOT, pods_of, rendered, workload
from zerofleet.k8s.containers import JOB_FOLDER
from zerofleet.k8s.profile import ImagesConfig, SecurityConfig, StorageConfig
from zerofleet.launch import image_check
from zerofleet.launch.workload import load_profile

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHON_OF = {"ubuntu24.04": "3.12"}
"""What Ubuntu's package `python3` is."""
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW", re.IGNORECASE)


def instructions() -> list[tuple[str, str]]:
    """Instruction and its text, continued lines joined."""
    lines = [line for line in (ROOT / "k8s/Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(name, text) for line in joined.splitlines() if line for name, _, text in [line.partition(" ")]]


FOUND = instructions()


def texts(name: str) -> list[str]:
    return [text for instruction, text in FOUND if instruction == name]


def environment() -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\S+)", " ".join(texts("ENV"))))


def defaults() -> dict[str, str]:
    return dict(text.split("=", 1) for text in texts("ARG"))


def test_the_base_is_a_cuda_image_of_one_version_with_a_python_that_zerofleet_takes():
    default = defaults()["CUDA_IMAGE"]
    assert texts("FROM") == ["${CUDA_IMAGE}"]
    found = re.fullmatch(r"nvidia/cuda:(\d+\.\d+\.\d+)-devel-(\w+\.\w+)", default)
    assert found and PYTHON_OF[found[2]] in SpecifierSet(PYPROJECT["requires-python"])


def test_it_runs_as_the_user_of_the_rendered_pods():
    uid = SecurityConfig().run_as_user
    assert texts("USER") == [str(uid)] and f"useradd --uid {uid} " in " ".join(texts("RUN"))
    for pod in pods_of(rendered(load_profile(CPU), workload(CPU))[-1]).values():
        assert pod["spec"]["securityContext"]["runAsUser"] == uid
    after = FOUND[FOUND.index(("USER", str(uid))) + 1 :]
    assert after == [("RUN", "python -m zerofleet.launch.image_check")]


def test_everything_is_installed_under_the_constraints():
    runs = " && ".join(texts("RUN"))
    installs = [command for command in runs.split("&&") if "pip install" in command]
    assert len(installs) == 2 and all("-c /opt/zerofleet/constraints.txt" in command for command in installs)
    assert ("COPY", "constraints.txt /opt/zerofleet/constraints.txt") in FOUND
    extras = defaults()["EXTRAS"].split(",")
    assert set(extras) <= set(PYPROJECT["optional-dependencies"]) and "train" in extras
    assert '[${EXTRAS}]"' in installs[1]


def test_the_versions_are_those_of_the_profile_and_of_the_metadata():
    pins = dict(re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert pins["ray"] == ImagesConfig(image="a").ray_version
    for text in PYPROJECT["optional-dependencies"]["train"]:
        pin = Requirement(text)
        assert pins[pin.name] in pin.specifier, text


def test_the_build_sees_what_it_copies_and_nothing_else():
    *rules, nothing = reversed(
        [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] not in "#"]
    )
    assert nothing == "*" and all(rule.startswith("!") for rule in rules)
    copied = [text.split()[0] for text in texts("COPY")]
    assert sorted(copied) == sorted(rule[1:] for rule in rules)
    assert not texts("ADD")
    wheel = f"zerofleet-{PYPROJECT['version']}-py3-none-any.whl"
    assert any(fnmatch.fnmatch(f"dist/{wheel}", name) for name in copied)


def test_no_volume_of_the_pods_covers_what_the_image_holds():
    own = [
        PurePosixPath(path) for path in ("/opt/zerofleet", environment()["HOME"], environment()["TORCH_EXTENSIONS_DIR"])
    ]
    for mount in (StorageConfig().mount_path, JOB_FOLDER, "/dev/shm"):
        assert not any(path.is_relative_to(mount) or PurePosixPath(mount).is_relative_to(path) for path in own)
    job = rendered(load_profile(CPU), workload(CPU))[-1]
    for pod in pods_of(job).values():
        names = {entry["name"] for entry in pod["spec"]["containers"][0].get("env", [])}
        assert not names & set(environment())  # what the image sets stays as it is


def test_what_pods_and_probes_call_is_there():
    packages = re.search(r"--no-install-recommends (.*?) &&", " ".join(texts("RUN")))[1].split()
    provides = {"python": "python3-venv", "ray": "python3-venv", "bash": "bash", "wget": "wget", "c++": "g++"}
    assert {provides[name] for name in image_check.COMMANDS} <= set(packages) and "python3-dev" in packages
    assert environment()["PATH"].startswith("/opt/zerofleet/bin:")
    job = rendered(load_profile(CPU), workload(CPU))[-1]
    assert job["spec"]["entrypoint"].split()[0] in image_check.COMMANDS


def test_modules_that_the_build_runs_are_there():
    modules = re.findall(r"python -m (zerofleet[\w.]+)", (ROOT / "k8s/Dockerfile").read_text())
    assert {"zerofleet.trainer.ops", "zerofleet.launch.image_check"} == set(modules)
    assert all(importlib.util.find_spec(module) for module in modules)


def test_nothing_secret_is_in_it():
    named = [*environment(), *(text.partition("=")[0] for text in texts("ARG"))]
    assert [name for name in named if SECRET.search(name)] == []


def test_what_is_compiled_later_can_be_written_by_the_user_and_by_a_platforms_own_user_id():
    (built,) = [text for text in texts("RUN") if "zerofleet.trainer.ops" in text]
    for command in ("chown -R 1000:0 ", "chmod -R g=u "):
        (folders,) = re.findall(re.escape(command) + r"([^&]*)", built)
        assert folders.split() == [environment()["TORCH_EXTENSIONS_DIR"], environment()["HOME"]]


@pytest.mark.parametrize("name", ["latest", "3.12-slim"])
def test_the_reading_of_the_base_is_strict(name):
    assert re.fullmatch(r"nvidia/cuda:(\d+\.\d+\.\d+)-devel-(\w+\.\w+)", f"nvidia/cuda:{name}") is None
