"""A folder without room, and one that nothing new can be written to, for real."""

from __future__ import annotations

import errno
import os

import pytest

from zerofleet.cluster.chaos.mounts import MountedOutage, RoomyFolder, check_mounts
from zerofleet.trainer.errors import UserError
from zerofleet.trainer.run_folder import RunFolder

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(30),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
]


def test_a_full_disk_has_room_again_and_what_was_written_is_kept(tmp_path):
    folder = tmp_path / "runs" / "a"
    roomy = RoomyFolder(folder)
    (folder / "logs").mkdir()
    (folder / "logs" / "before").write_text("before")
    roomy.fill()
    with pytest.raises(OSError, match="No space left on device"):
        (folder / "during").write_bytes(bytes(1 << 20))
    roomy.empty()
    (folder / "after").write_text("after")
    roomy.close()
    assert not os.path.ismount(folder)
    assert (folder / "logs" / "before").read_text() == "before" and (folder / "after").read_text() == "after"
    assert [path.name for path in folder.parent.iterdir()] == ["a"]


def test_in_an_outage_open_files_go_on_and_nothing_new_is_made(tmp_path):
    (tmp_path / "old").write_text("old")
    with (tmp_path / "open").open("w") as file:
        outage = MountedOutage(tmp_path)
        outage.begin()
        try:
            with pytest.raises(OSError) as caught:
                (tmp_path / "new").write_text("new")
            assert caught.value.errno == errno.EROFS
            file.write("more")
        finally:
            outage.end()
    assert (tmp_path / "open").read_text() == "more"
    (tmp_path / "new").write_text("new")


def test_only_local_folders_can_be_mounted_over():
    with pytest.raises(UserError, match="storage_outage mounts something over the run folder"):
        check_mounts(RunFolder("memory://runs", "a"), "storage_outage")
