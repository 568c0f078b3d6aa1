"""Exporting and erasing a visitor's conversations beside the running server, and keys that encrypt them."""

import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import jwt
import msgspec
import pytest

from server.chat.kept.sealing import Seal, add_key
from server.commands.conversations import main
from server.errors import ConfigError
from server.metering.audit import chain
from server.metering.ledger.records import LedgerUnavailable
from server.skills.identity import Identity
from server.storage.database import StorageError
from tests.support.harness import HELP, Serve, Served, until
from tests.support.visitor import Visitor, events

SECRET = "a secret of the page's own server"
KNOWN = msgspec.structs.replace(HELP, identity=Identity("HS256", SECRET))


def settings(folder: Path, served: Served, *lines: str) -> str:
    path = folder / "server.toml"
    config = served.parts.config
    both = [f'model = "m"\nskills = "s"\nledger = "{config.ledger}"\nfeedback = "{config.feedback_file}"', *lines]
    path.write_text("\n".join(both))
    return str(path)


def visitor(served: Served, person: str) -> Visitor:
    claims = {"sub": person, "aud": "help", "exp": int(time.time()) + 120}
    return Visitor(served, identity=jwt.encode(claims, SECRET, "HS256"))


def test_a_visitor_is_exported_and_erased_and_nobody_else(
    tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "keys"
    add_key(key)
    served = serve("An answer", skills=(KNOWN,), conversation_storage="database", conversation_key=str(key))
    ada, bob = visitor(served, "ada"), visitor(served, "bob")
    reply = ada.ask("my secret question")[0].data["reply"]
    ada.post("feedback", {"reply": reply, "rating": "down", "comment": "a secret comment"})
    bob.ask("another")
    server = settings(tmp_path, served, 'conversation_storage = "database"', f'conversation_key = "{key}"')
    main(["export", server, "--visitor", "ada"])
    [found] = json.loads(capsys.readouterr().out)
    assert (found["conversation"], found["skill"]) == (ada.opened.json["conversation"], "help")
    assert found["turns"] == [
        {
            "reply": reply,
            "question": "my secret question",
            "text": "An answer",
            "finish": "stop",
            "rating": "down",
            "comment": "a secret comment",
        }
    ]
    main(["erase", server, "--visitor", "ada"])
    assert "erased 1 conversations with 1 replies" in capsys.readouterr().out
    assert ada.get("conversation").json["turns"] == []
    assert not Visitor(served, resume=ada.opened.json["resume"]).opened.json["resumed"]
    assert [turn["question"] for turn in bob.get("conversation").json["turns"]] == ["another"]
    with closing(sqlite3.connect(served.parts.config.ledger)) as database:
        [(who, result)] = database.execute("SELECT object, result FROM audit WHERE action = 'conversations.erased'")
    assert "ada" not in who
    assert result == "1 conversations with 1 replies"
    with closing(sqlite3.connect(served.parts.config.feedback_file)) as database:
        assert database.execute("SELECT * FROM feedback").fetchall() == []


def test_erased_text_is_gone_from_the_file_and_its_log(tmp_path: Path, serve: Serve) -> None:
    served = serve("An answer", skills=(KNOWN,), conversation_storage="database")
    asked = visitor(served, "ada")
    asked.ask("my secret question")

    def written() -> bytes:
        return b"".join(file.read_bytes() for file in tmp_path.glob("conversations.sqlite3*"))

    assert b"secret question" in written()
    server = settings(tmp_path, served, 'conversation_storage = "database"')
    main(["erase", server, "--conversation", asked.opened.json["conversation"]])
    assert b"secret question" not in written()


def test_erasing_stops_a_reply_under_way(tmp_path: Path, serve: Serve) -> None:
    served = serve("x" * 60, passes=3, skills=(KNOWN,), conversation_storage="database")
    asked = visitor(served, "ada")
    with closing(asked.stream("go")) as response:
        stream = events(response)
        next(stream)
        main(["erase", settings(tmp_path, served, 'conversation_storage = "database"'), "--all"])
        served.runner.allow(3)
        until(lambda: served.engine.running == 0)
        assert list(stream)[-1].data["finish"] == "stopped"


def test_what_memory_keeps_cannot_be_erased_from_outside(tmp_path: Path, serve: Serve) -> None:
    served = serve()
    server = settings(tmp_path, served)
    with pytest.raises(ConfigError, match=r"the server's memory alone.*conversation_storage"):
        main(["erase", server, "--all"])
    with pytest.raises(ConfigError, match="visitor is empty"):
        main(["erase", settings(tmp_path, served, 'conversation_storage = "database"'), "--visitor", ""])


def test_keys_are_added_in_front(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys"
    for _ in range(2):
        main(["key", "--file", str(path)])
    assert "2 keys, the first encrypts" in capsys.readouterr().out
    assert len(path.read_text().split()) == 2
    Seal.read(path)


def test_an_erasure_that_the_audit_log_misses_fails(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served = serve("An answer", skills=(KNOWN,), conversation_storage="database")
    visitor(served, "ada").ask("my secret question")
    server = settings(tmp_path, served, 'conversation_storage = "database"')

    def full(*_: object) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(chain, "append", full)
    with pytest.raises(LedgerUnavailable, match="audit log: the disk is full"):
        main(["erase", server, "--all"])
    assert "erased 1 conversations with 1 replies" in capsys.readouterr().out  # it was
