"""The configuration reference is what the code says."""

from __future__ import annotations

from pathlib import Path

from zerofleet.launch.config_reference import render, render_profile

DOCS = Path(__file__).parents[2] / "docs"


def test_the_document_is_up_to_date():
    module = "python -m zerofleet.launch.config_reference"
    assert (DOCS / "configuration.md").read_text() == render(), f"{module} > docs/configuration.md"
    assert (DOCS / "profile.md").read_text() == render_profile(), f"{module} profile > docs/profile.md"


def test_fields_stand_in_their_own_section_with_their_defaults():
    text = render()
    data = text.partition("## `data`")[2].partition("\n## ")[0]
    assert "| `sequence_length` | `512` | Tokens per training sequence. |" in data
    assert "| `zero_stage` | `1` |" in text and "| `steps` | required |" in text and "| `name` | none |" in text


def test_what_stands_below_a_name_of_the_users_choice_has_rows_too():
    source = render().partition("## `data.sources.<name>`")[2].partition("\n## ")[0]
    assert "One source of a mixture" in source and "| `weight` | required | Its share" in source


def test_a_profile_has_settings_outside_of_sections_and_lists_of_sections():
    text = render_profile()
    top = text.partition("\n## ")[0]
    assert "| `namespace` | required |" in top and "secret_env" not in top
    tolerations = text.partition("## `workers.tolerations`")[2].partition("\n## ")[0]
    assert "| `operator` | `Exists` |" in tolerations
