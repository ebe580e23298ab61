"""The cache folder."""

from runners.cache import cache_root, write_cached


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SLIMFRONT_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"
    monkeypatch.delenv("SLIMFRONT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "slimfront"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "slimfront"


def test_a_folder_that_cannot_be_written_is_named_once_and_nothing_is_left(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("SLIMFRONT_CACHE", str(tmp_path))
    (tmp_path / "file").write_text("in the way")
    write_cached(tmp_path / "file" / "below", b"content")
    (tmp_path / "taken").mkdir()
    write_cached(tmp_path / "taken", b"content")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "taken"]
    (record,) = caplog.records
    assert record.message.startswith(f"the cache {tmp_path} cannot be written (")
