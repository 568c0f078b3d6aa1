"""API keys in a file: created once, scoped to skills, and revoked at once."""

import os
import signal
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from server.commands.__main__ import main
from server.commands.serve import check as serve_check
from server.config import load
from server.errors import ConfigError
from server.skills import api_keys
from server.skills.api_keys import Keys, digest
from server.skills.catalogue import Skills
from server.skills.key_limits import Allowance, KeyLimits
from tests.server.web.test_listeners import Answer, call
from tests.support.harness import HELP, OTHER, Served, parts, says, served

ASK = {"model": "help", "messages": [{"role": "user", "content": "hi"}]}


def complete(server: Served, key: str, model: str = "help") -> Answer:
    return call(server.url, "/v1/chat/completions", {**ASK, "model": model}, Authorization=f"Bearer {key}")


def test_a_malformed_digest_is_a_damaged_file(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text('{"keys": [{"digest": "\u20ac", "skills": ["help"], "created": ""}]}')
    assert Keys(file).find("\u20ac") is None


@pytest.mark.slow
def test_sighup_during_the_start_does_not_end_it(tmp_path: Path) -> None:
    skills, file = tmp_path / "slow.toml", tmp_path / "server.toml"
    os.mkfifo(skills)
    file.write_text(f'model = "m"\nskills = "{skills}"\nledger = "{tmp_path / "l"}"\n')
    with subprocess.Popen(
        [sys.executable, "-m", "server.commands", "serve", str(file)], stderr=subprocess.PIPE
    ) as server:
        with skills.open("w") as writer:  # opened once the server reads it
            server.send_signal(signal.SIGHUP)
            writer.write('nam = "help"')
        assert server.stderr
        assert b"unknown field `nam`" in server.stderr.read()
    assert server.returncode == 2


@pytest.mark.slow
def test_sigterm_during_the_start_ends_it(tmp_path: Path) -> None:
    skills, file = tmp_path / "slow.toml", tmp_path / "server.toml"
    os.mkfifo(skills)
    file.write_text(f'model = "m"\nskills = "{skills}"\nledger = "{tmp_path / "l"}"\n')
    command = [sys.executable, "-m", "server.commands", "serve", str(file)]
    with subprocess.Popen(command) as server, skills.open("w"):  # opened once the server reads it
        server.send_signal(signal.SIGTERM)
        assert server.wait(120) == 128 + signal.SIGTERM  # by itself, as the first process of a container must


def test_unusable_key_files_are_refused_at_the_start(tmp_path: Path) -> None:
    api_keys.check(None)
    api_keys.check(tmp_path / "none.json")  # it may be made later
    damaged = tmp_path / "keys.json"
    damaged.write_text("{")
    with pytest.raises(ConfigError, match=r"keys.json is not a key file"):
        api_keys.check(damaged)
    folder = tmp_path / "folder.json"
    folder.mkdir()
    with pytest.raises(ConfigError, match=r"folder.json cannot be read: Is a directory"):
        api_keys.check(folder)
    config, skill = tmp_path / "server.toml", tmp_path / "skill.toml"
    skill.write_text('name = "help"')
    text = f'model = "m"\nskills = "{skill}"\nledger = "{tmp_path}/l"\nport = 0\nadmin_port = 0\n'
    for setting in ("keys", "admin_keys"):
        config.write_text(f'{text}{setting} = "{damaged}"\n')
        with pytest.raises(ConfigError, match=r"keys.json is not a key file"):
            serve_check(load(config))


def test_a_rewritten_key_file_keeps_its_owner_and_mode(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    _, key = api_keys.create(file, ["help"], "")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o640)
    if os.getuid() == 0:  # as an administrator who makes keys for the server's user
        os.chown(file, 10001, 10002)
    owner = file.stat()
    api_keys.revoke(file, key.id)
    now = file.stat()
    assert stat.S_IMODE(now.st_mode) == 0o640
    assert (now.st_uid, now.st_gid) == (owner.st_uid, owner.st_gid)
    assert now.st_ino != owner.st_ino


def test_a_key_file_whose_owner_cannot_be_kept_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys.json"
    api_keys.create(file, ["help"], "")
    before = file.read_bytes()
    other = os.stat_result((*file.stat()[:4], 10001, 10002, *file.stat()[6:]))
    monkeypatch.setattr(os, "fstat", lambda _: other)

    def refuse(*_: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refuse)
    with pytest.raises(ConfigError, match=r"keys.json cannot be written: Operation not permitted"):
        api_keys.create(file, ["help"], "")
    assert file.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"keys.json", "keys.json.lock"}


def made(output: str) -> str:
    return next(word for word in output.split() if word.startswith("sk-"))


def test_a_key_is_shown_once_opens_its_skills_and_is_revoked_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys.json"
    runner = says(tmp_path, "ok")
    prepared = parts(tmp_path, runner)
    prepared = msgspec.structs.replace(prepared, skills=Skills([HELP, OTHER], Keys(file)))
    with served(prepared, runner) as server:
        assert main(["keys", "create", "--file", str(file), "--skill", "help", "--note", "shop"]) == 0
        key = made(capsys.readouterr().out)
        assert key not in file.read_text()
        assert (file.stat().st_mode & 0o777) == 0o600
        assert complete(server, key).status == 200
        assert complete(server, key, "other").status == 403
        assert complete(server, key + "x").status == 401
        main(["keys", "list", str(file)])
        listed = capsys.readouterr().out
        id = listed.split()[0]
        assert "help" in listed
        assert "shop" in listed
        assert key not in listed
        assert main(["keys", "revoke", str(file), id]) == 0
        assert complete(server, key).status == 401
        assert main(["keys", "revoke", str(file), id]) == 2
        assert "revoked" in capsys.readouterr().err


def test_a_damaged_or_missing_key_file_admits_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "keys.json"
    keys = Keys(file)
    assert keys.find(digest("sk-x")) is None
    shown, _ = api_keys.create(file, ["help"], "")
    assert keys.find(digest(shown))
    content = file.read_bytes()
    file.write_bytes(content[:-9])
    assert keys.find(digest(shown)) is None
    assert "are refused" in caplog.text
    assert shown not in caplog.text
    file.write_bytes(content)
    assert keys.find(digest(shown))
    file.unlink()
    assert keys.find(digest(shown)) is None
    with pytest.raises(ConfigError, match="cannot be read"):
        api_keys.read(file)


def test_a_key_that_opens_nothing_is_not_created(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "create", "--file", str(tmp_path / "keys.json")]) == 2
    assert "--skill NAME" in capsys.readouterr().err


def test_an_expired_key_is_refused_with_its_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys.json"
    runner = says(tmp_path, "ok")
    prepared = msgspec.structs.replace(parts(tmp_path, runner), skills=Skills([HELP], Keys(file)))
    with served(prepared, runner) as server:
        assert main(["keys", "create", "--file", str(file), "--skill", "help", "--expires", "90d"]) == 0
        key = made(capsys.readouterr().out)
        [kept] = api_keys.read(file).keys
        left = datetime.fromisoformat(kept.expires) - datetime.now(UTC)
        assert timedelta(days=89, hours=23) < left <= timedelta(days=90)
        assert complete(server, key).status == 200
        main(["keys", "list", str(file)])
        assert f"expires {kept.expires}" in capsys.readouterr().out
        ended = msgspec.structs.replace(kept, expires="2026-01-02T03:04:05+00:00")
        api_keys._write(file, api_keys.KeyFile((ended,)))
        answer = complete(server, key)
        assert answer.status == 401
        assert answer.json["error"]["code"] == "api_key_expired"
        assert answer.json["error"]["message"] == "This API key expired at 2026-01-02T03:04:05+00:00."
        main(["keys", "list", str(file)])
        assert "expired 2026-01-02" in capsys.readouterr().out
    assert Keys(file).find(digest(key)) is None


def test_an_unreadable_time_has_passed(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    for text in ("soon", "2999-01-01"):  # the second has no time zone
        shown, key = api_keys.create(file, ["help"], "", expires=text)
        assert key.expired
        assert Keys(file).find(digest(shown)) is None


def test_both_keys_open_the_same_until_the_grace_period_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys.json"
    assert main(["keys", "create", "--file", str(file), "--skill", "help", "--admin", "metrics", "--note", "shop"]) == 0
    old = made(capsys.readouterr().out)
    id = digest(old)[: api_keys.KEY_ID]
    assert main(["keys", "rotate", str(file), id, "--grace", "2h", "--expires", "30d"]) == 0
    printed = capsys.readouterr().out
    new = made(printed)
    first, second = api_keys.read(file).keys
    assert f"{id}, which it replaces, is refused from {first.expires} on." in printed
    assert (second.skills, second.admin, second.note, second.replaces) == (("help",), "metrics", "shop", id)
    assert second.created_by == first.created_by != ""
    keys = Keys(file)
    assert keys.find(digest(old)) == first
    assert keys.find(digest(new)) == second
    grace = datetime.fromisoformat(first.expires) - datetime.now(UTC)
    assert timedelta(hours=1, minutes=59) < grace <= timedelta(hours=2)

    assert main(["keys", "rotate", str(file), second.id, "--grace", "90d"]) == 0  # never later than it was to end
    assert api_keys.read(file).keys[1].expires == second.expires
    api_keys.revoke(file, id)
    assert main(["keys", "rotate", str(file), id]) == 2
    assert "no valid key" in capsys.readouterr().err


def test_scripts_get_keys_as_json_and_the_secret_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "keys.json")

    def said(*words: str) -> Any:
        assert main(["keys", *words, "--json"]) == 0
        return msgspec.json.decode(capsys.readouterr().out)

    made = said("create", "--file", file, "--skill", "help", "--note", "shop", "--tokens-per-day", "9")
    assert (made["id"], made["skills"], made["limits"]) == (digest(made["key"])[:12], ["help"], {"tokens_per_day": 9})
    rotated = said("rotate", file, made["id"], "--grace", "2h")
    assert rotated["replaces"] == rotated["old"]["id"] == made["id"]
    assert digest(rotated["key"])[:12] == rotated["id"]
    first, second = said("list", file)
    assert first == rotated["old"]
    assert second == {name: value for name, value in rotated.items() if name not in ("key", "old")}
    assert (first["expired"], first["revoked"], first["note"]) == (False, "", "shop")
    assert not {"digest", "key"} & first.keys()
    bare = said("create")
    assert digest(bare["key"]) == bare["digest"]


@pytest.mark.parametrize("span", ["0d", "90", "d", "-1d", "1w", "1.5h", "999999d"])
def test_a_span_that_is_none_is_refused(tmp_path: Path, span: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["keys", "create", "--file", str(tmp_path / "k"), "--skill", "help", f"--expires={span}"])
    assert "write 90d, 12h or 30m" in capsys.readouterr().err


def test_a_key_for_a_skills_file_cannot_expire(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "create", "--expires", "90d"]) == 2
    assert "--file FILE" in capsys.readouterr().err


def test_files_of_before_are_read_unchanged(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    line = {
        "digest": digest("sk-old"),
        "skills": ["help"],
        "created": "2026-11-24T12:00:00+00:00",
        "note": "",
        "revoked": "",
    }
    file.write_bytes(msgspec.json.encode({"keys": [line, {**line, "digest": digest("sk-2"), "admin": "all"}]}))
    before = file.read_bytes()
    assert Keys(file).find(digest("sk-old"))
    assert file.read_bytes() == before
    api_keys.create(file, ["help"], "")
    assert [key.expires for key in api_keys.read(file).keys] == ["", "", ""]
    assert Keys(file).find(digest("sk-2"))


def test_limits_are_given_shown_changed_and_taken_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "keys.json")
    options = ["--tokens-per-day", "200_000", "--concurrent-replies", "2"]
    assert main(["keys", "create", "--file", file, "--skill", "help", "--note", "shop", *options]) == 0
    id = digest(made(printed := capsys.readouterr().out))[: api_keys.KEY_ID]
    assert "Its limits: tokens_per_day=200000 concurrent_replies=2" in printed
    main(["keys", "list", file])
    assert "  help  tokens_per_day=200000 concurrent_replies=2  shop" in capsys.readouterr().out
    assert main(["keys", "limit", file, id, "--tokens-per-day", "none", "--requests-per-minute", "5"]) == 0
    assert capsys.readouterr().out == f"{id} from the next request on: requests_per_minute=5 concurrent_replies=2\n"
    [key] = api_keys.read(Path(file)).keys
    assert (key.limited_by, key.limits) == (key.created_by, KeyLimits(requests_per_minute=5, concurrent_replies=2))
    main(["keys", "limit", file, id, "--requests-per-minute", "none", "--concurrent-replies", "none"])
    assert "no limits of its own" in capsys.readouterr().out
    assert main(["keys", "limit", file, id, "--tokens-per-day", "9", "--tokens-per-month", "5"]) == 0
    assert "limits nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["limit", "FILE", "ID"], "name a limit to change: --requests-per-minute, --tokens-per-minute"),
        (["limit", "FILE", "0" * 12, "--tokens-per-day", "1"], "no valid key '000000000000'"),
        (["create", "--tokens-per-day", "4"], "only in a file of keys: --file FILE"),
        (["create", "--file", "FILE", "--admin", "all", "--tokens-per-day", "4"], "--skill NAME"),
        (["create", "--file", "FILE", "--skill", "help", "--tokens-per-day", "0"], "'0' is no limit"),
        (["limit", "FILE", "ID", "--tokens-per-day", "-1"], "'-1' is no limit"),
        (["create", "--group", "staff"], "a key has groups only in a file of keys"),
        (["create", "--file", "FILE", "--admin", "all", "--group", "staff"], "groups are for the knowledge of skills"),
        (["create", "--file", "FILE", "--skill", "help", "--group", " "], "' ' is no group"),
        (["create", "--file", "FILE", "--skill", "help", "--group", "x" * 65], "write 1 to 64 printable characters"),
        (["limit", "FILE", "ID", "--tokens-per-day", "a lot"], "write a whole number above 0"),
    ],
)
def test_limits_and_groups_that_cannot_be_kept_are_refused(
    tmp_path: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys.json"
    _, key = api_keys.create(file, ["help"], "")
    before = file.read_bytes()
    try:
        code: object = main(["keys", *({"FILE": str(file), "ID": key.id}.get(word, word) for word in arguments)])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert said in capsys.readouterr().err
    assert file.read_bytes() == before


def test_groups_are_shown_and_kept_by_rotation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys.json"
    options = ["--file", str(file), "--skill", "help", "--note", "shop"]
    groups = ["--group", "staff", "--group", "board", "--group", "staff"]
    assert main(["keys", "create", *options, *groups]) == 0
    shown = made(printed := capsys.readouterr().out)
    assert "Its groups: staff, board\n" in printed
    main(["keys", "list", str(file)])
    assert "  help  groups=staff,board  shop" in capsys.readouterr().out
    assert Skills([HELP], Keys(file)).recognise(shown).groups == {"staff", "board"}
    new_shown, new, _ = api_keys.rotate(file, digest(shown)[: api_keys.KEY_ID], timedelta(hours=1))
    assert new.groups == ("staff", "board")
    assert Skills([HELP], Keys(file)).recognise(new_shown).groups == {"staff", "board"}
    api_keys.revoke(file, new.id)
    opened = Skills([msgspec.structs.replace(HELP, keys=(digest(new_shown),))], Keys(file)).recognise(new_shown)
    assert not opened.groups  # the skill's own file still opens it, without what the revoked key might see


def test_rotated_keys_share_their_limits_and_a_change_holds_for_all_of_them(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    _, first = api_keys.create(file, ["help"], "", limits=KeyLimits(tokens_per_day=10))
    _, other = api_keys.create(file, ["help"], "")
    _, second, _ = api_keys.rotate(file, first.id, timedelta(hours=1))
    _, third, _ = api_keys.rotate(file, second.id, timedelta(hours=1))
    keys = Keys(file)
    shared = Allowance(KeyLimits(tokens_per_day=10), (third.id, second.id, first.id))
    assert [keys.allowance(key.id) for key in (first, second, third)] == [shared] * 3
    assert (shared.owner, keys.allowance(other.id)) == (first.id, Allowance(ids=(other.id,)))
    assert keys.limited() == [shared]
    api_keys.revoke(file, first.id)
    assert {key.id for key in api_keys.limit(file, second.id, {"tokens_per_day": 20})} == {second.id, third.id}
    assert keys.limited() == [Allowance(KeyLimits(tokens_per_day=20), shared.ids)]
    assert keys.allowance("") == keys.allowance("unknown") == Allowance()


def test_a_file_without_limits_can_still_be_read_by_servers_that_know_none(tmp_path: Path) -> None:
    """They refuse unknown fields, and with them every key."""
    file = tmp_path / "keys.json"
    api_keys.create(file, ["help"], "shop")
    assert not {"limits", "groups"} & set(msgspec.json.decode(file.read_bytes())["keys"][0])


def test_a_skill_that_the_server_of_the_file_lacks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "help.toml").write_text('name = "help"')
    settings = 'model = "m"\nskills = "help.toml"\nledger = "l.sqlite3"\n'
    create = ["keys", "create", "--file", "keys.json", "--skill"]
    (tmp_path / "server.toml").write_text(settings)
    assert main([*create, "hlep"]) == 0
    assert "so no name was checked" in capsys.readouterr().err
    (tmp_path / "server.toml").write_text(f'{settings}keys = "keys.json"\n')
    assert main([*create, "hlep"]) == 2
    assert "help.toml has no skill 'hlep'; did you mean 'help'? there are help" in capsys.readouterr().err
    assert main([*create, "help"]) == 0
    assert "warning" not in capsys.readouterr().err
    assert [key.skills for key in api_keys.read(tmp_path / "keys.json").keys] == [("hlep",), ("help",)]
