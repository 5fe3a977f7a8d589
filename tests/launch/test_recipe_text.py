import pytest

from zerofleet.launch.recipe_text import parse_mapping, parse_overrides, parse_yaml, set_path
from zerofleet.trainer.errors import UserError


def refused(call, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    return str(caught.value)


@pytest.mark.parametrize(("text", "value"), [("3e-4", 3e-4), ("1E5", 1e5), ("-2.5e+1", -25.0), (".5e1", 5.0)])
def test_exponents_without_a_dot_are_numbers(text, value):
    assert parse_yaml(text, "x") == value


@pytest.mark.parametrize("text", ["e5", "1e", "a1e5", "1e5b"])
def test_words_that_look_like_exponents_stay_text(text):
    assert parse_yaml(text, "x") == text


def test_wrong_yaml_says_line_and_column():
    message = refused(parse_mapping, "model:\n  a: [1, 2\ntrain: 3\n", "r.yaml")
    assert message.startswith("r.yaml, line 3, column 6: ")
    assert "    train: 3\n         ^" in message


def test_a_tab_is_wrong_yaml():
    assert "line 2, column 1" in refused(parse_mapping, "model:\n\ta: 1\n", "r.yaml")


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3\n", "x: {a: 1, a: 2}", "x:\n  - a: 1\n    a: 2\n"])
def test_a_key_given_twice_is_refused(text):
    message = refused(parse_mapping, text, "r.yaml")
    assert "'a' is given twice (first on line" in message


def test_merge_keys_work():
    assert parse_yaml("base: &b {a: 1}\nx: {<<: *b, c: 2}", "r")["x"] == {"a": 1, "c": 2}


@pytest.mark.parametrize(("text", "part"), [("", "is empty"), ("- a\n", "a list"), ("just words", "a str")])
def test_a_recipe_is_a_mapping(text, part):
    assert part in refused(parse_mapping, text, "r.yaml")


def test_overrides_are_yaml():
    first, second = parse_overrides(["train.betas=[0.9, 0.99]", "a.b="])
    assert (first.keys, first.value, first.text) == (["train", "betas"], [0.9, 0.99], "[0.9, 0.99]")
    assert second.value is None


@pytest.mark.parametrize("argument", ["train.steps", "=3", "a..b=3", ".a=3", "a.=3", "a b=3"])
def test_what_is_no_override(argument):
    assert "write key=value" in refused(parse_overrides, [argument])


def test_set_path_makes_sections_and_refuses_to_enter_a_value():
    mapping = {"a": {"b": 1}, "empty": None}
    set_path(mapping, ["a", "c", "d"], 2)
    set_path(mapping, ["empty", "x"], 3)
    assert mapping == {"a": {"b": 1, "c": {"d": 2}}, "empty": {"x": 3}}
    assert "a.b is 1" in refused(set_path, mapping, ["a", "b", "c"], 3)
