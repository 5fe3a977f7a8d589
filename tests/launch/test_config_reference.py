"""The configuration reference is what the code says."""

from __future__ import annotations

from pathlib import Path

from zerofleet.launch.config_reference import render

DOCUMENT = Path(__file__).parents[2] / "docs/configuration.md"


def test_the_document_is_up_to_date():
    assert DOCUMENT.read_text() == render(), "python -m zerofleet.launch.config_reference > docs/configuration.md"


def test_fields_stand_in_their_own_section_with_their_defaults():
    text = render()
    data = text.partition("## `data`")[2].partition("\n## ")[0]
    assert "| `sequence_length` | `512` | Tokens per training sequence. |" in data
    assert "| `zero_stage` | `1` |" in text and "| `steps` | required |" in text and "| `name` | none |" in text
