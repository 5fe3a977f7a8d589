"""Nobody but a silo reads its data, and nothing but deltas leaves it: silos as users and in networks of their own."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
import yaml

from tests.conftest import WORDS
from tests.integration.test_silos import corpus_of
from tests.support.ranks import job
from tests.support.silos import Silos
from tests.support.walls import Cell, why_not
from zerofleet.trainer.run_folder import RunFolder
from zerofleet.trainer.silos.wire import SENT, VARIABLE, Server
from zerofleet.trainer.world import World

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(400),
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]

USERS = {"a": 61_001, "b": 61_002}
STEPS, SECRET_WORD = 6, {"a": "aardvark", "b": "buffalo"}
_READ = "import sys, pathlib; p = pathlib.Path(sys.argv[1]); print(len(p.read_bytes()) if p.is_file() else sorted(p.iterdir()))"
_CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)"


class Walled(Silos):
    """Two silos, each with its corpus, its prepared data and its run in a folder of its own."""

    def __init__(self, folder: Path, tiny_corpus: Path, tiny_cache) -> None:
        super().__init__(folder / "server", tiny_corpus, tiny_cache)
        where = self.server.where
        tokenizer = Path(shutil.copytree(tiny_cache.tokenizer_path, folder / "tokenizer"))
        for path in (tokenizer, *tokenizer.rglob("*")):
            path.chmod(0o755)
        self.cells = {name: Cell(folder / name, user, (where.host, where.port)) for name, user in USERS.items()}
        for number, (name, cell) in enumerate(self.cells.items()):
            corpus = corpus_of(
                cell.folder / "corpus", number, [*WORDS[number * 6 : number * 6 + 14], SECRET_WORD[name]]
            )
            found = job(cell.folder, corpus, silo={"name": name, "interval_steps": 2}, train__steps=STEPS)
            data = found.data.model_copy(update={"tokenizer": str(tokenizer), "cache": str(cell.folder / "cache")})
            sections = found.model_copy(update={"data": data}).model_dump(mode="json", exclude_unset=True)
            (cell.folder / "job.yaml").write_text(yaml.safe_dump(sections))
            cell.hand_over()

    def train(self) -> dict[str, str]:
        """Both to their end; what they printed."""
        processes = {}
        for name, cell in self.cells.items():
            host, _, port = cell.door.address.rpartition(":")
            where = Server(host, int(port), self.server.where.secret).to_env()
            network = {**World(0, 0, 0, 1, name, 1).env("127.0.0.1", 29500), "GLOO_SOCKET_IFNAME": "lo"}
            command = ["-m", "zerofleet.trainer", str(cell.folder / "job.yaml")]
            processes[name] = cell.start(command, **{VARIABLE: where}, **network)
        outputs = {name: process.communicate(timeout=350)[0] for name, process in processes.items()}
        assert all(process.returncode == 0 for process in processes.values()), outputs
        return outputs

    def silo_run(self, name: str) -> RunFolder:
        return RunFolder(str(self.cells[name].folder / "runs"), "tiny")

    def close(self) -> None:
        for cell in self.cells.values():
            cell.close()
        super().close()


@pytest.fixture(scope="module")
def walled(tiny_corpus, tiny_cache):
    """Not below pytest's folder or a worker's own, which other users cannot enter."""
    with tempfile.TemporaryDirectory(prefix="zerofleet-walls-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        found = Walled(Path(folder), tiny_corpus, tiny_cache)
        found.train()
        yield found
        found.close()


@pytest.mark.parametrize(("reader", "owner"), [("a", "b"), ("b", "a")])
def test_no_silo_reads_anothers_data_nor_what_was_made_of_it(walled, reader, owner):
    """Its own it reads."""
    for place in ("corpus/00.txt", "cache", "runs/tiny/ledger", "runs/tiny/checkpoints", "."):
        mine, theirs = (walled.cells[name].folder / place for name in (reader, owner))
        assert "PermissionError" in walled.cells[reader].run("-c", _READ, str(theirs))
        assert "Error" not in walled.cells[reader].run("-c", _READ, str(mine))


def test_a_silo_reaches_nobody_but_the_outer_server(walled):
    """From inside, not even the server's own address: only the door that leads to it."""
    server, (other, cell) = walled.server.where, (walled.cells["b"], walled.cells["a"])
    own_door, other_door = (each.door.address.rpartition(":") for each in (cell, other))
    assert "refused" in cell.run("-c", _CONNECT, server.host, str(server.port))
    assert "refused" in cell.run("-c", _CONNECT, other_door[0], other_door[2])
    assert "unreachable" in cell.run("-c", _CONNECT, "192.0.2.1", "80")
    assert cell.run("-c", _CONNECT, own_door[0], own_door[2]) == ""


@pytest.mark.parametrize("name", USERS)
def test_the_egress_record_is_every_byte_that_left_the_silo(walled, name):
    """Deltas and initial weights of the model's size, messages around them, and no more."""
    told = [event.data for event in walled.silo_run(name).events() if event.kind == "outer"]
    assert [data["state"] for data in told] == ["joined", "done", "done", "done"]
    by_kind = {kind: sum(data["sent_bytes"][kind] for data in told) for kind in SENT}
    assert sum(by_kind.values()) == walled.cells[name].door.sent_bytes
    manifest = walled.silo_run(name).checkpoints()[-1].manifest
    assert by_kind["deltas"] == 3 * num_weight_bytes(walled, name, manifest)
    assert by_kind["questions"] < 80_000


def num_weight_bytes(walled: Walled, name: str, manifest: str) -> int:
    from zerofleet.trainer.checkpoint.format import Manifest

    tensors = Manifest.from_bytes(walled.silo_run(name).storage.read(manifest)).tensors
    return sum(4 * tensor.num_elements for tensor in tensors.values())
