import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

from zerofleet.cluster import probe
from zerofleet.launch.backends.package import code_package, probe_package


def unpacked(package: bytes, folder: Path) -> Path:
    with zipfile.ZipFile(io.BytesIO(package)) as archive:
        archive.extractall(folder)
    return folder


def python(folder: Path, code: str) -> str:
    """What a Python prints that has the package and nothing else of ours."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={"PYTHONPATH": str(folder), "PATH": ""},
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_sent_code_is_the_code_that_is_here(tmp_path):
    """Unpacked, it is found first, has the same digest, and brings its version and its recipes along."""
    folder = unpacked(code_package(), tmp_path)
    code = (
        "import zerofleet.cluster.probe as p, zerofleet.launch as l, importlib.metadata as m\n"
        "print(p.__file__, p.code_digest(), m.distribution('zerofleet').locate_file(''), l.__path__[0])"
    )
    file, digest, metadata, launch = python(folder, code).split()
    assert file == str(folder / "zerofleet/cluster/probe.py") and digest == probe.code_digest() != ""
    assert Path(metadata) == folder and (Path(launch) / "recipes/quickstart.yaml").exists()


def test_the_same_code_gives_the_same_bytes():
    assert code_package() == code_package()


def test_no_tests_no_results_and_nothing_of_the_checkout_is_sent():
    with zipfile.ZipFile(io.BytesIO(code_package())) as archive:
        names = archive.namelist()
    tops = {name.split("/")[1] for name in names if name.startswith("zerofleet/")}
    assert tops == {"benchmarks", "cluster", "k8s", "launch", "trainer"}
    assert {name.rpartition(".")[2] for name in names} == {"py", "yaml", "dist-info/METADATA"}
    assert len(code_package()) < 3_000_000


def test_the_probe_needs_nothing_of_ours(tmp_path):
    folder = unpacked(probe_package("/runs/marker"), tmp_path)
    assert json.loads((folder / f"{probe.MODULE}.json").read_text())["marker"] == "/runs/marker"
    code = f"import sys, {probe.MODULE} as p; print(p.sees('/'), any(n.startswith('zerofleet.') for n in sys.modules))"
    assert python(folder, code) == "True False"
