"""The rules of the layout: who may import whom, what stays light, which folders are packages."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKAGES = ("benchmarks", "cluster", "k8s", "launch", "trainer")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

MAY_IMPORT = {
    "trainer": set(),
    "cluster": {"trainer"},
    "k8s": {"cluster.config"},
    "launch": {"trainer", "cluster", "k8s"},
    "benchmarks": {"trainer", "cluster", "k8s", "launch"},
}
"""A package or a module of it."""

LIGHT = (
    "zerofleet.launch.backends.ray_checks",
    "zerofleet.launch.config",
    "zerofleet.launch.cli",
    "zerofleet.launch.drivers",
    "zerofleet.launch.pod_save",
    "zerofleet.launch.workload",
    "zerofleet.trainer.config",
    "zerofleet.trainer.lint",
    "zerofleet.trainer.batch",
    "zerofleet.trainer.events",
    "zerofleet.trainer.run_folder",
    "zerofleet.trainer.sizing",
    "zerofleet.trainer.storage",
    "zerofleet.trainer.world",
    "zerofleet.cluster.config",
    "zerofleet.cluster.probe",
    "zerofleet.k8s.lint",
    "zerofleet.k8s.observer",
    "zerofleet.k8s.pending",
    "zerofleet.launch.backends.kuberay_verbs",
    "zerofleet.k8s.rayjob",
    *(f"zerofleet.{package}" for package in PACKAGES),
)
HEAVY = {"torch", "ray", "deepspeed", "transformers", "datasets", "wandb", "tokenizers"}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    """trainer/data/cache.py -> trainer.data.cache."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Every module of ours that is imported anywhere in the file, in functions too, as `trainer.config`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name.removeprefix("zerofleet.") for name in found if name.startswith("zerofleet.")}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package):
    allowed = MAY_IMPORT[package] | {package}
    for path in modules(package):
        for imported in imports(path):
            is_allowed = any(imported == name or imported.startswith(f"{name}.") for name in allowed)
            is_parent = any(
                name.startswith(f"{imported}.") for name in allowed
            )  # `from zerofleet.cluster import config`
            assert is_allowed or is_parent, f"{name_of(path)} imports {imported}"


def test_only_cluster_knows_ray_and_only_k8s_knows_kubernetes():
    owners = {
        "ray": {"cluster", "benchmarks"},
        "kubernetes": {"k8s"},
        "deepspeed": {"trainer", "cluster", "benchmarks"},
    }
    for package in PACKAGES:
        for path in modules(package):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                for name in names:
                    owner = owners.get(name.partition(".")[0])
                    is_driver = name_of(path) == "launch.driver"  # joins the Ray that cluster has started
                    assert owner is None or package in owner or is_driver, f"{name_of(path)} imports {name}"


def test_config_command_line_and_packages_are_light():
    script = f"import sys\nfor name in {LIGHT!r}: __import__(name)\nprint(*({HEAVY!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.split() == []


def test_the_package_list_equals_the_folders():
    folders = {
        f"zerofleet.{'.'.join(path.parent.relative_to(ROOT).parts)}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert sorted(folders) == PYPROJECT["tool"]["setuptools"]["packages"]


def test_every_folder_with_modules_has_an_init_and_the_root_has_none():
    assert not (ROOT / "__init__.py").exists()
    for top in (*PACKAGES, "tests"):
        for path in modules(top):
            assert (path.parent / "__init__.py").exists(), f"{path.parent} has no __init__.py"


def test_no_module_is_named_after_a_dependency():
    extras = PYPROJECT["project"]["optional-dependencies"].values()
    requirements = [*PYPROJECT["project"]["dependencies"], *(text for extra in extras for text in extra)]
    taken = {Requirement(text).name.lower().replace("-", "_") for text in requirements} | {"yaml"}
    assert {"torch", "ray", "datasets", "kubernetes"} <= taken
    named = {path.stem: path for package in PACKAGES for path in modules(package) if not path.stem.startswith("__")}
    assert {stem: path for stem, path in named.items() if stem in taken} == {}


def test_tests_mirror_the_source():
    """A folder of tests/ is a folder of the source, or one of the few that are not about one package."""
    own = {"integration", "support"}
    folders = [path for path in (ROOT / "tests").rglob("*") if path.is_dir() and path.name != "__pycache__"]
    for folder in folders:
        relative = folder.relative_to(ROOT / "tests")
        assert relative.parts[0] in own or (ROOT / relative).is_dir(), relative


@pytest.mark.parametrize("package", PACKAGES)
def test_files_and_functions_stay_readable(package):
    for path in modules(package):
        text = path.read_text()
        assert len(text.splitlines()) <= 400, f"{name_of(path)} has {len(text.splitlines())} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1
                assert length <= 70, f"{name_of(path)}.{node.name} has {length} lines"


def test_every_module_says_what_it_is_for():
    for package in PACKAGES:
        for path in modules(package):
            assert ast.get_docstring(ast.parse(path.read_text())), f"{name_of(path)} has no docstring"
