"""What of the rules can become untrue without anybody's notice."""

from __future__ import annotations

import tomllib
from pathlib import Path

from zerofleet.k8s.profile import ImagesConfig
from zerofleet.k8s.rules.naming import RAY_VERSION

PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"


def test_the_ray_version_is_the_one_that_is_pinned():
    train = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]["train"]
    assert f"ray[default]=={RAY_VERSION}" in train
    assert ImagesConfig(image="a").ray_version == RAY_VERSION
