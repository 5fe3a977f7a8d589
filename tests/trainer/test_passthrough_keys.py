"""The tables of DeepSpeed's keys against the source of the installed version, which is parsed, not imported."""

import ast
import importlib.util
from importlib import metadata
from pathlib import Path

import pytest

from zerofleet.trainer.passthrough_keys import ALLOWED, DEEPSPEED_VERSION, REFUSED

spec = importlib.util.find_spec("deepspeed")
if spec is None:
    pytest.skip("deepspeed is not installed", allow_module_level=True)
SOURCE = Path(spec.submodule_search_locations[0])


def tree(path: str) -> ast.Module:
    return ast.parse((SOURCE / path).read_text())


def known(section: str) -> set[str]:
    return set(ALLOWED[section]) | set(REFUSED.get(section, {}))


def constants() -> dict[str, str]:
    """NAME = "text" in the modules that runtime/config.py takes its names from."""
    modules = [tree("runtime/constants.py"), tree("runtime/config.py"), tree("runtime/data_pipeline/constants.py")]
    assignments = [node for module in modules for node in module.body if isinstance(node, ast.Assign)]
    return {
        target.id: node.value.value
        for node in assignments
        for target in node.targets
        if isinstance(target, ast.Name) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    }


def is_top_level(node: ast.AST) -> bool:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "keys":
        node = node.func.value
    return isinstance(node, ast.Name) and node.id == "param_dict"


def top_level_keys() -> set[str]:
    """Every key that runtime/config.py reads from `param_dict` itself."""
    found: list[ast.expr] = []
    for node in ast.walk(tree("runtime/config.py")):
        if isinstance(node, ast.Call) and node.args and isinstance(node.func, ast.Name | ast.Attribute):
            if isinstance(node.func, ast.Name) and node.func.id == "get_scalar_param" and is_top_level(node.args[0]):
                found.append(node.args[1])
            elif isinstance(node.func, ast.Attribute) and node.func.attr == "get" and is_top_level(node.func.value):
                found.append(node.args[0])
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In) and is_top_level(node.comparators[0]):
            found.append(node.left)
        elif isinstance(node, ast.Subscript) and is_top_level(node.value):
            found.append(node.slice)
    names = constants()
    names["comm_type"] = names["COMMUNICATION_DATA_TYPE"]  # the one that comes in by a parameter
    keys = {
        node.value if isinstance(node, ast.Constant) else names.get(node.id)
        for node in found
        if not isinstance(node, ast.Attribute)
    }
    return {key for key in keys if isinstance(key, str)}


def fields(path: str, class_name: str) -> dict[str, str]:
    """Fields of a pydantic class: name -> the name in a config file."""
    (found,) = (node for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef) and node.name == class_name)
    aliases = {}
    for node in found.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            keywords = node.value.keywords if isinstance(node.value, ast.Call) else []
            alias = next((word.value.value for word in keywords if word.arg == "alias"), node.target.id)
            aliases[node.target.id] = alias
    return aliases


def removed(name: str) -> set[str]:
    (found,) = (
        node.value
        for node in tree("runtime/config.py").body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name
    )
    return {key.value for key in found.keys}


def test_the_installed_version_is_the_one_that_the_tables_describe():
    assert metadata.version("deepspeed") == DEEPSPEED_VERSION


def test_every_top_level_key_that_deepspeed_reads_is_known():
    found = top_level_keys()
    assert len(found) > 30, "the search itself is broken"
    assert found - known("") == set()


@pytest.mark.parametrize(
    ("section", "path", "class_name"),
    [
        ("zero_optimization", "runtime/zero/config.py", "DeepSpeedZeroConfig"),
        (
            "zero_optimization.offload_optimizer",
            "runtime/zero/offload_config.py",
            "DeepSpeedZeroOffloadOptimizerConfig",
        ),
        ("zero_optimization.offload_param", "runtime/zero/offload_config.py", "DeepSpeedZeroOffloadParamConfig"),
        ("bf16", "runtime/precision_config.py", "DeepSpeedBF16Config"),
        ("fp16", "runtime/precision_config.py", "DeepSpeedFP16Config"),
    ],
)
def test_sections_have_the_keys_of_the_installed_version(section, path, class_name):
    expected = set(fields(path, class_name).values())
    gone = removed("_REMOVED_ZERO_CONFIG_KEYS") if section == "zero_optimization" else set()
    assert known(section) == expected | gone


def test_what_deepspeed_removed_is_refused_as_removed():
    for name, section in (("_REMOVED_TOP_LEVEL_CONFIG_KEYS", ""), ("_REMOVED_ZERO_CONFIG_KEYS", "zero_optimization")):
        for key in removed(name):
            assert "was removed" in REFUSED[section][key].reason, key
            assert REFUSED[section][key].harmless == (), f"DeepSpeed raises for any value of {key}"


def test_every_known_key_occurs_in_deepspeed():
    folders = ["runtime", "comm", "monitor", "profiling", "autotuning", "datastates", "utils", "compile"]
    text = "".join(path.read_text() for folder in folders for path in (SOURCE / folder).rglob("*.py"))
    unheard = [
        key for section in ALLOWED for key in known(section) if f'"{key}"' not in text and f"'{key}'" not in text
    ]
    in_classes = set(fields("runtime/zero/config.py", "DeepSpeedZeroConfig")) | set(
        fields("runtime/zero/offload_config.py", "DeepSpeedZeroOffloadOptimizerConfig")
    )
    in_classes |= set(fields("runtime/zero/offload_config.py", "DeepSpeedZeroOffloadParamConfig"))
    in_classes |= set(fields("runtime/precision_config.py", "DeepSpeedBF16Config"))
    in_classes |= set(fields("runtime/precision_config.py", "DeepSpeedFP16Config"))
    assert [key for key in unheard if key not in in_classes] == []


def test_no_key_is_both_allowed_and_refused():
    assert [key for section in REFUSED for key in REFUSED[section] if key in ALLOWED[section]] == []
