"""Passwords of addresses are used, asked of the environment where they are masked, and never written."""

import dataclasses
from pathlib import Path

import pytest

from configs.loading import RUN_FILE, check_resumed, effective_yaml, parse_flags
from configs.passwords import masked, masked_settings, with_password
from configs.schema import RunConfig
from search.tracking.recorder import config_params
from spaces.errors import ConfigError

SECRET = "s3cr/t'x"  # noqa: S105
STORAGE = f"postgresql://me:{SECRET}@host:5432/db"
SERVER = "https://me:s3cr@server"


@pytest.mark.parametrize(
    ("text", "written"),
    [
        (STORAGE, "postgresql://me:***@host:5432/db"),
        ("redis://:pw@host/0", "redis://:***@host/0"),
        ("mysql+pymysql://u:a:b@h/d?ssl_key=k&charset=u", "mysql+pymysql://u:***@h/d?ssl_key=***&charset=u"),
        ("http://host/?token=abc", "http://host/?token=***"),
        ("no answer from 'postgresql://u:p@h/d' nor http://a:b@c (x@y)", None),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("sqlite:////a:b/study.db", "sqlite:////a:b/study.db"),
        ("http://host:5000/#/a", "http://host:5000/#/a"),
        (masked(STORAGE), masked(STORAGE)),
    ],
)
def test_the_passwords_of_a_text_are_masked(text: str, written: str | None) -> None:
    expected = "no answer from 'postgresql://u:***@h/d' nor http://a:***@c (x@y)"
    assert masked(text) == (expected if written is None else written)


def test_no_form_in_which_settings_are_written_has_a_password() -> None:
    config = RunConfig(budget=("50%",), storage=STORAGE, tracking_uri=SERVER)
    settings = masked_settings(dataclasses.asdict(config))
    for written in (repr(config), effective_yaml(config), str(settings), str(config_params(settings))):
        assert "s3cr" not in written
        assert "s3cr" not in masked(written)
    assert (config.storage_address, config.tracking_address) == (STORAGE, SERVER)


def test_a_resumed_search_asks_the_environment_for_its_passwords(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / RUN_FILE).write_text(effective_yaml(RunConfig(budget=("50%",), storage=STORAGE, tracking_uri=SERVER)))
    config = parse_flags(["--resume", str(tmp_path)])
    with pytest.raises(ConfigError, match="as SLIMFRONT_STORAGE_PASSWORD"):
        _ = config.storage_address
    with pytest.raises(ConfigError, match="as SLIMFRONT_TRACKING_PASSWORD"):
        _ = config.tracking_address
    monkeypatch.setenv("SLIMFRONT_STORAGE_PASSWORD", "a/b@c")
    monkeypatch.setenv("SLIMFRONT_TRACKING_PASSWORD", "plain")
    config = parse_flags(["--resume", str(tmp_path)])
    assert config.storage_address == "postgresql://me:a%2Fb%40c@host:5432/db"
    assert config.tracking_address == "https://me:plain@server"


def test_a_changed_password_does_not_make_another_search(tmp_path: Path) -> None:
    (tmp_path / RUN_FILE).write_text(effective_yaml(RunConfig(budget=("50%",), storage=STORAGE)))
    check_resumed(parse_flags(["--resume", str(tmp_path), "--storage", "postgresql://me:new@host:5432/db"]))
    with pytest.raises(ConfigError) as caught:
        check_resumed(parse_flags(["--resume", str(tmp_path), "--storage", "postgresql://me:new@other/db"]))
    assert "'postgresql://me:***@other/db' here" in str(caught.value)


def test_stars_elsewhere_in_an_address_are_no_mask() -> None:
    assert with_password("storage", "sqlite:///runs/***/study.db") == "sqlite:///runs/***/study.db"
