"""A corpus that is dealt out: every document in one part, the parts as the partitioner says, and all of it or nothing."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from zerofleet.trainer.config import DataConfig
from zerofleet.trainer.errors import DataError, UserError
from zerofleet.trainer.silos.deal import Dealing, deal
from zerofleet.trainer.silos.partition import partition_documents

CODE, PROSE = [f"def f{number}(): ..." for number in range(40)], [f"Once, {number} times." for number in range(60)]


@pytest.fixture
def corpus(tmp_path) -> DataConfig:
    for name, documents in (("code", CODE), ("prose", PROSE)):
        (tmp_path / name).mkdir()
        lines = [json.dumps({"text": text}) for text in ["", *documents, "  \n"]]
        (tmp_path / name / "all.jsonl").write_text("\n".join(lines))
    return DataConfig(files=[str(tmp_path / "*/all.jsonl")])


def dealing(name: str, num_parts: int = 4, label="folder", seed: int = 0, **options) -> Dealing:
    return Dealing(name, num_parts, label, seed, options)


def texts(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def test_every_document_that_counts_is_in_one_part_and_lies_where_the_partitioner_says(corpus, tmp_path):
    parts = deal(corpus, dealing("DirichletPartitioner", alpha=0.3), tmp_path / "out")
    labels = ["code"] * len(CODE) + ["prose"] * len(PROSE)
    wanted = partition_documents("DirichletPartitioner", labels, 4, 0, {"alpha": 0.3})
    for number, part in enumerate(parts):
        assert texts(part.path) == [text for text, silo in zip([*CODE, *PROSE], wanted, strict=True) if silo == number]
        assert part.num_documents == (wanted == number).sum()
    assert max(len({Path(label).name for label in part.labels}) for part in parts) == 2


def test_natural_ids_are_taken_by_name(corpus, tmp_path):
    first, second = deal(corpus, dealing("NaturalIdPartitioner", 2), tmp_path / "out")
    assert (texts(first.path), texts(second.path)) == (CODE, PROSE)


def test_sources_of_a_mixture_are_labels(corpus, tmp_path):
    sources = {name: {"weight": 1.0, "files": [str(tmp_path / name / "*.jsonl")]} for name in ("prose", "code")}
    mixture = DataConfig(sources=sources, packing="best_fit")
    parts = deal(mixture, dealing("NaturalIdPartitioner", 2, "source"), tmp_path / "out")
    assert [part.labels for part in parts] == [{"code": len(CODE)}, {"prose": len(PROSE)}]


def test_the_same_seed_deals_the_same_and_another_another(corpus, tmp_path):
    folders = [tmp_path / name for name in ("first", "again", "other")]
    for folder, seed in zip(folders, (0, 0, 1), strict=True):
        deal(corpus, dealing("IidPartitioner", seed=seed), folder)
    first, again, other = ([(folder / f"part-{n}.jsonl").read_bytes() for n in range(4)] for folder in folders)
    assert first == again != other


def test_how_it_came_about_lies_beside_the_parts(corpus, tmp_path):
    parts = deal(corpus, dealing("LinearPartitioner", 2, "file", seed=7), tmp_path / "out")
    summary = json.loads((tmp_path / "out/partition.json").read_text())
    assert (summary["partitioner"], summary["seed"], summary["files"]) == ("LinearPartitioner", 7, corpus.files)
    assert [Counter(part["labels"]) for part in summary["parts"]] == [Counter(part.labels) for part in parts]


def test_a_folder_that_is_there_is_not_touched(corpus, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists already"):
        deal(corpus, dealing("IidPartitioner"), tmp_path / "out")


@pytest.mark.parametrize("bad", [b"\xff\xfe", b"{"])
def test_what_cannot_be_read_leaves_nothing_behind(corpus, tmp_path, bad):
    """Met at the first reading or the second: here the file is damaged between them."""
    before = sorted(tmp_path.rglob("*"))
    (tmp_path / "prose/all.jsonl").write_bytes(bad)
    with pytest.raises(DataError):
        deal(corpus, dealing("IidPartitioner"), tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def test_bad_data_is_left_out_where_the_recipe_says_so(corpus, tmp_path):
    (tmp_path / "prose/all.jsonl").write_bytes(b"\xff\xfe")
    parts = deal(corpus.model_copy(update={"on_bad": "quarantine"}), dealing("IidPartitioner"), tmp_path / "out")
    assert sum(part.num_documents for part in parts) == len(CODE)
