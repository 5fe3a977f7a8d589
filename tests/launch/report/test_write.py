"""The page lies in the run folder, and is replaced there."""

from __future__ import annotations

from pathlib import Path

from zerofleet.launch.report import write
from zerofleet.trainer.run_folder import REPORT, RunFolder


def test_the_verb_writes_the_page_and_writes_it_again(zerofleet, drive, tmp_path):
    drive("recover")
    assert zerofleet("submit", "recipe.yaml", "run.name=a")[0] == 0
    for _ in range(2):
        code, out, _ = zerofleet("report", "a")
        assert (code, out) == (0, f"{tmp_path}/runs/a/report.html\n")
        page = Path(out.strip()).read_text()
        assert page.startswith("<!doctype html>") and page.count("<title>a</title>") == 1 and "hidden_size: 64" in page
        Path(out.strip()).write_text("old")


def test_a_report_that_cannot_be_written_fails_nothing(tmp_path, caplog):
    run = RunFolder(str(tmp_path), "a")
    write.leave_report(run)  # there is no job.yaml
    assert "zerofleet report a` tries again" in caplog.text and not run.storage.exists(REPORT)
