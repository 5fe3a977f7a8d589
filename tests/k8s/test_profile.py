"""Every setting of a profile is documented, with its unit."""

from __future__ import annotations

import re

import pytest

from zerofleet.k8s.profile import Profile
from zerofleet.launch.config_fields import config_fields

FIELDS = config_fields(Profile)
UNITS = {
    "_s": "Seconds",
    "_gib": "GiB",
    "_mb_per_s": "Megabytes per second",
    "_gb_per_s": "Gigabytes per second",
}


@pytest.mark.parametrize("path", FIELDS)
def test_every_setting_is_documented_in_a_sentence(path):
    doc = FIELDS[path].doc
    assert len(doc) >= 8 and doc.endswith((".", ")")), f"{path}: {doc!r}"


@pytest.mark.parametrize("path", [path for path in FIELDS if re.search(r"(?<!_per)_(s|gib)$", path)])
def test_a_unit_in_a_name_is_in_its_sentence(path):
    unit = next(unit for ending, unit in sorted(UNITS.items(), key=lambda u: -len(u[0])) if path.endswith(ending))
    assert unit.lower() in FIELDS[path].doc.lower()
