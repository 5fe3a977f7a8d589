"""Datasets of the hub, from a server on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tests.trainer.data.corpora import document, prepared, write_corpus
from tests.trainer.data.hub_server import COMMIT, hub_server

# In a process of its own: HF_ENDPOINT is read when the libraries are imported.
CODE = """
import json, sys
from zerofleet.trainer.config import DataConfig, HubDataset
from zerofleet.trainer.data.prepare import prepare
from zerofleet.trainer.data.sources import resolve
from zerofleet.trainer.errors import DataError

def config(hub, **fields):
    return DataConfig(hub=HubDataset(**hub), cache=sys.argv[1], tokenizer_vocab_size=300, sequence_length=32,
                      heldout_fraction=0.1, **fields)

cache = prepare(config({"id": "team/rows"}), 0, lambda *report: None)
again = prepare(config({"id": "team/rows"}), 0, lambda *report: None)
errors = []
for hub, fields in [({"id": "team/none"}, {}), ({"id": "team/rows", "split": "dev"}, {}), ({"id": "team/rows"}, {"text_field": "body"})]:
    try:
        prepare(config(hub, **fields), 0, lambda *report: None)
    except DataError as error:
        errors.append(str(error))
identity = resolve(config({"id": "team/rows"})).identity
print(json.dumps({"fingerprint": cache.fingerprint, "same": cache.path == again.path, "identity": identity, "errors": errors}))
"""


def test_a_dataset_of_the_hub_is_prepared_as_its_files_would_be(tmp_path):
    reference = prepared(write_corpus(tmp_path / "corpus"), tmp_path / "cache")
    rows = b"".join(json.dumps({"id": index, "text": document(index)}).encode() + b"\n" for index in range(40))
    with hub_server(rows) as address:
        answer = subprocess.run(
            [sys.executable, "-c", CODE, str(tmp_path / "cache")],
            env=os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    report = json.loads(answer.stdout)
    assert report["fingerprint"] == reference.fingerprint
    assert report["same"]
    assert COMMIT in json.dumps(report["identity"]), "the revision that was fetched is part of the cache's key"
    unknown, split, column = report["errors"]
    assert "data.hub: 'team/none', split 'train' cannot be loaded" in unknown and "check the id" in unknown
    assert "split 'dev' cannot be loaded" in split
    assert "no column 'body'; it has 'id', 'text': set data.text_field" in column
