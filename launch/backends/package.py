"""What is sent to a Ray cluster: zerofleet's code, and the probe that looks at the cluster. As zips for `py_modules`.

Not as wheels: Ray installs a .whl by `pip install --target` with all that it requires, on every node, which takes an index and puts
second copies before those of the image (ray 2.60, `install_wheel_package`). A zip is what a wheel holds, and is only unpacked.
"""

from __future__ import annotations

import io
import json
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

from zerofleet.cluster import probe

_DATE = (1980, 1, 1, 0, 0, 0)
"""Zip's first day: the same code gives the same bytes, and so the same URI."""


def requirements() -> list[str]:
    """What zerofleet requires, as its metadata says it: with markers, for the cluster's Python to judge."""
    return metadata.requires("zerofleet") or []


def code_package() -> bytes:
    """The code that runs here, importable from the zip's root, with the metadata that tells its version."""
    version = probe.code_version()
    about = f"zerofleet-{version}.dist-info"
    files = {name: file.read_bytes() for name, file in probe.code_files()}
    described = metadata.distribution("zerofleet").read_text("METADATA") or ""
    return _zip({**files, f"{about}/METADATA": described.encode()})


def probe_package(marker: str) -> bytes:
    """The probe and its question: `marker` is a file that every node should see, or empty."""
    asked: dict[str, Any] = {"requirements": requirements(), "marker": marker}
    assert probe.__file__ is not None
    source = Path(probe.__file__).read_bytes()
    return _zip({f"{probe.MODULE}.py": source, f"{probe.MODULE}.json": json.dumps(asked).encode()})


def _zip(files: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(files.items()):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, data)
    return target.getvalue()
