from zerofleet.cluster import host, probe


def test_the_digest_is_of_the_content(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text("1")
    (tmp_path / "b.yaml").write_text("1")
    files = [("zerofleet/a.py", tmp_path / "a.py"), ("zerofleet/b.yaml", tmp_path / "b.yaml")]
    monkeypatch.setattr(probe, "code_files", lambda: files)
    before = probe.code_digest()
    (tmp_path / "b.yaml").write_text("2")
    assert probe.code_digest() == before
    (tmp_path / "a.py").write_text("2")
    assert probe.code_digest() != before
    monkeypatch.setattr(probe, "code_files", list)
    assert (probe.code_digest(), probe.code_version()) == ("", "")


def test_requirements_that_are_not_met_are_named():
    asked = ["psutil>=999", "no-such-package; extra == 'train'", "other; extra == 'dev'", "packaging>=24"]
    first, second = probe.unmet(asked)
    assert (
        first.startswith("psutil is ") and first.endswith("needed is >=999") and second == "no-such-package is missing"
    )


def test_a_file_is_seen_by_path_and_by_url(tmp_path):
    (tmp_path / "there").touch()
    assert probe.sees(str(tmp_path / "there")) and probe.sees(f"file://{tmp_path}/there")
    assert not probe.sees(str(tmp_path / "not")) and not probe.sees(f"file://{tmp_path}/not")


def test_a_storage_whose_client_is_missing_is_said(monkeypatch):
    facts = probe.look({"requirements": [], "marker": "nosuchprotocol://bucket/x"})
    assert facts["sees_storage"] is False and "nosuchprotocol" in facts["storage_error"]
    assert facts["digest"] == probe.code_digest()


def test_memory_is_that_of_the_host_or_the_container(tmp_path, monkeypatch):
    found = probe.memory()
    assert found["memory_bytes"] == host.memory_bytes() and found["shm_bytes"] > 0
    (tmp_path / "limit").write_text("1048576\n")
    monkeypatch.setattr(probe, "_CGROUP_LIMIT", tmp_path / "limit")
    monkeypatch.setattr(probe, "_GPU_TOOL", ["printf", "81559\n40960\n"])
    assert probe.memory() == found | {"memory_bytes": 1048576, "gpu_memory_bytes": 40960 * 2**20}
    monkeypatch.setattr(probe, "_GPU_TOOL", ["no-such-tool"])
    assert probe.memory()["gpu_memory_bytes"] == 0
