import re
from pathlib import Path

import pytest

from server.config import AdminLogin, Config, load, warnings
from server.errors import ConfigError
from tests.conftest import ROOT

NEEDED = 'model = "m"\nskills = "s"\nledger = "l.sqlite3"\n'


def test_defaults_are_loopback_only(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text(NEEDED)
    assert load(file) == Config(model="m", skills=Path("s"), ledger="l.sqlite3")
    assert load(file).host == load(file).admin_host == "127.0.0.1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"missing required field `model` - at `\$`"),
        (NEEDED + "prot = 1", r"unknown field `prot` - at `\$`; did you mean `port`\? known fields are model, .*port"),
        (
            NEEDED + "log = 'jsno'",
            r"value 'jsno' - at `\$.log`; did you mean 'json'\? allowed are json, text",
        ),
        (NEEDED + "key_bits = 4", r"Invalid enum value 4 - at `\$.key_bits`; allowed are 8, 16"),
        (NEEDED + "host = ''", r"length >= 1 - at `\$.host`"),
        (NEEDED + "port = 70000", r"<= 65535 - at `\$.port`"),
        (NEEDED + "port = '8000'", r"Expected `int`, got `str` - at `\$.port`"),
        (NEEDED + "trusted_proxies = ['127.0.0.1', '*']", r"'\*' is not an address or network .*trusted_proxies\[1\]"),
        (NEEDED + "trusted_proxies = ['nginx']", r"'nginx' is not an address or network such as 10.0.0.0/8"),
        (NEEDED + "slots = 0", r">= 1 - at `\$.slots`"),
        (NEEDED.replace('"s"', "3"), r"Expected a path - at `\$.skills`"),
        (NEEDED + 'webhook = "https://host:many/"', r"a webhook is a URL .* at `\$.webhook`"),
        (NEEDED + f'webhook = "https://{"a" * 64}.example/"', r"a webhook is a URL"),
        (NEEDED + 'webhook = "https://name:word@host/"', r"without user or password"),
        (NEEDED + 'webhook = "https:///events"', r"a webhook is a URL"),
        (NEEDED + 'webhook = "https://host/a b"', r"a webhook is a URL"),
        (NEEDED + 'webhook = "ftp://host/"', r"a webhook is a URL"),
        (NEEDED.replace("l.sqlite3", "postgresql://h/d"), r"a file of their own, .* at `\$.feedback`"),
        ("model = ", r"is not TOML: Invalid value"),
        (b"\xff", r"is not TOML: 'utf-8' codec"),
    ],
)
def test_a_mistake_is_named_with_file_path_and_what_is_allowed(tmp_path: Path, text: str | bytes, message: str) -> None:
    file = tmp_path / "server.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=message) as caught:
        load(file)
    assert str(caught.value).startswith(str(file))


@pytest.mark.parametrize("setting", ["ledger", "registry", "rate_limits", "feedback"])
@pytest.mark.parametrize(
    "url",
    [
        "postgress://me:hunter2@host/usage", "mysql://me:hunter2@host/usage", "Postgresql://me:hunter2@host/usage",
        " postgresql://me:hunter2@host/usage", "postgresql:/me:hunter2@host/usage", "sqlite:///hunter2",
        "host=db password=hunter2",
    ],
)  # fmt: skip
def test_a_misspelt_url_is_refused_without_its_password(tmp_path: Path, setting: str, url: str) -> None:
    file = tmp_path / "server.toml"
    file.write_text(re.sub(f"(?m)^{setting} = .*\n", "", NEEDED) + f'{setting} = "{url}"')
    with pytest.raises(ConfigError, match=rf"(postgresql|redis)://|an SQLite file.* at `\$.{setting}`") as caught:
        load(file)
    assert "hunter2" not in str(caught.value)


def test_a_url_with_a_secret_is_read_from_its_file(tmp_path: Path) -> None:
    file, url = tmp_path / "server.toml", tmp_path / "url"
    url.write_text("rediss://me:hunter2@host:6379/0\n")
    file.write_text(f'{NEEDED}rate_limits = "file:{url}"')
    assert load(file).rate_limits == "rediss://me:hunter2@host:6379/0"
    for content, message in ((b"", "is empty"), (b"\xff", "is not text"), (b"mysql://hunter2", "counters are kept at")):
        url.write_bytes(content)
        with pytest.raises(ConfigError, match=rf"{message}.* - at `\$.rate_limits`") as caught:
            load(file)
        assert "hunter2" not in str(caught.value)
    url.unlink()
    with pytest.raises(ConfigError, match=r"url cannot be read: No such file or directory - at `\$.rate_limits`"):
        load(file)


@pytest.mark.parametrize("network", ["0.0.0.0/0", "::/0"])
def test_proxies_that_are_everybody_are_warned_about(tmp_path: Path, network: str) -> None:
    file = tmp_path / "server.toml"
    file.write_text(f'{NEEDED}trusted_proxies = ["10.0.0.0/8", "{network}"]')
    [warning] = warnings(load(file))
    assert warning.startswith(f"`trusted_proxies` has {network}: any client may then choose")


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: No such file"):
        load(tmp_path / "none.toml")


@pytest.mark.parametrize("url", ["https://host", "http://127.0.0.1:8199/events?tenant=1", "https://[::1]:9/x"])
def test_a_webhook_url_is_kept_unchanged(tmp_path: Path, url: str) -> None:
    (tmp_path / "server.toml").write_text(f'{NEEDED}webhook = "{url}"')
    assert load(tmp_path / "server.toml").webhook == url


def test_the_demo_is_valid() -> None:
    config = load(ROOT / "examples/demo/server.toml")
    assert (config.port, config.admin_port, config.page_port) == (8000, 9464, 8001)


LOGIN = (
    NEEDED
    + """
[admin_login]
issuer = "https://login.example/realms/shop"
client_id = "secateur"
url = "https://secateur.example/"
viewers = ["staff"]
"""
)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("https://login", "http://login", r"http:// is for this machine alone - at `\$.admin_login.issuer`"),
        ("https://login.example", "login", r"issuer must be an address such as .* - at `\$.admin_login.issuer`"),
        ("https://secateur", "http://secateur", r"alone - at `\$.admin_login.url`"),
        ("secateur.example/", "secateur.example/admin", r"url is the origin alone, .* - at `\$.admin_login.url`"),
        ('viewers = ["staff"]', "", r"name groups of `viewers` or `operators`, .* - at `\$.admin_login`"),
        ("viewers", "scopes = ['email']\nviewers", r"must contain openid - at `\$.admin_login.scopes`"),
        (
            "viewers",
            "client_secret = 'hunter2'\nviewers",
            r"write file:PATH or env:NAME - at `\$.admin_login.client_se",
        ),
        ("viewers", "client_secret = 'env:NO_SUCH'\nviewers", r"variable NO_SUCH is empty or not set - at"),
        ("viewers", "client_secret = 'file:none'\nviewers", r"none cannot be read: No such file or directory - at"),
        ("viewers", "session_seconds = 90000\nviewers", r"<= 43200 - at `\$.admin_login.session_seconds`"),
        ("viewers", "viewer = ['x']\nviewers", r"unknown field `viewer` .* did you mean `viewers`"),
    ],
)
def test_a_mistake_in_the_login_is_named_without_its_secret(tmp_path: Path, old: str, new: str, message: str) -> None:
    file = tmp_path / "server.toml"
    assert old in LOGIN
    file.write_text(LOGIN.replace(old, new))
    with pytest.raises(ConfigError, match=message) as caught:
        load(file)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("where", ["env", "file"])
def test_a_login_opens_the_admin_listener_and_its_secret_is_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OIDC", "hunter2")
    Path("secret").write_text("hunter2\n")
    named = {"env": "env:OIDC", "file": "file:secret"}[where]
    text = LOGIN.replace("[admin_login]", f'admin_host = "0.0.0.0"\n[admin_login]\nclient_secret = "{named}"')
    (tmp_path / "server.toml").write_text(text)
    login = load(tmp_path / "server.toml").admin_login
    assert isinstance(login, AdminLogin)
    assert (login.client_secret, login.url) == ("hunter2", "https://secateur.example")


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://Admin.Example:443/", "https://admin.example"),
        ("https://admin.example:8443", "https://admin.example:8443"),
        ("http://127.0.0.1:80", "http://127.0.0.1"),
        ("http://[::1]:9464/", "http://[::1]:9464"),
    ],
)
def test_the_logins_url_is_the_origin_that_browsers_send(tmp_path: Path, url: str, origin: str) -> None:
    (tmp_path / "server.toml").write_text(LOGIN.replace("https://secateur.example/", url))
    login = load(tmp_path / "server.toml").admin_login
    assert login
    assert login.url == origin
