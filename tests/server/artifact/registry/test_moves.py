"""Moves of production: signed, chained, never behind the last one seen, and by somebody who may."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from server.artifact.registry import history, rules, statements
from server.artifact.registry.seen import LastSeen
from server.artifact.registry.statements import MoveStatement
from server.artifact.registry.store import Move, Registry
from server.artifact.signing import keys
from server.artifact.signing.keys import Signers, read_private
from server.errors import RegistryError, SecateurError
from tests.exams.hostile.registry_inserts import ATTACKS, Site
from tests.server.artifact.registry.shop import FAILED, Shop


@pytest.mark.parametrize(
    ("attack", "sentence"), list(zip(ATTACKS, (
        "move 2 of tiny, to version 2, is not signed",
        "move 2 of tiny, to version 2, is not signed",
        "move 3 of tiny, to version 1, is not signed",
        "move 3 of tiny was changed: its row is not what was signed",
        "the registry lacks move 2 of tiny, which this server has seen",
        "the registry lacks move 2 of tiny, which this server has seen",
        "move 2 of tiny, to version 2, is not signed",
        "by promote",
        "by promote",
        "failed its gate faq, says its own record",
        "does not hold what the last step of lineage.json made",
    ), strict=True)),
)  # fmt: skip
def test_what_an_owner_of_the_database_writes_is_refused(tmp_path: Path, attack: str, sentence: str) -> None:
    said = ATTACKS[attack](Site(tmp_path))
    assert said.startswith("refused")
    assert sentence in said


def three_moves(shop: Shop) -> None:
    """Version 1, version 2, and back."""
    for value in (1.0, 2.0):
        shop.added(value)
        assert shop("promote", f"tiny@{value:.0f}", "--signers", shop.signers) == 0
    assert shop("rollback", "tiny", "--signers", shop.signers) == 0


def resigned(move: Move, shop: Shop, **changes: object) -> Move:
    """`move` with another statement of the shop's own signer, and a row that fits."""
    stated = replace(msgspec.json.decode(move.statement, type=MoveStatement), **changes)
    one = statements.signed(stated, read_private(shop.key))
    return replace(move, kind=stated.kind, number=stated.number, statement=one.statement, signature=one.signature)


@pytest.mark.parametrize(
    ("tamper", "sentence"),
    [
        (lambda moves, _: moves[:1] + moves[2:], "move 2 of tiny was removed"),
        (lambda moves, _: [replace(moves[0], reason="x"), *moves[1:]], "move 1 of tiny was changed"),
        (lambda moves, _: [replace(moves[0], statement=""), *moves[1:]], "move 2 of tiny does not follow move 1"),
        (lambda moves, _: [*moves[:2], replace(moves[2], statement="{}")], "move 3 of tiny is malformed"),
        (lambda moves, _: [*moves[:2], replace(moves[2], signature="x")], "alice did not sign it"),
        (lambda moves, _: [*moves[:2], replace(moves[2], signature=moves[1].signature)], "alice did not sign it"),
        (lambda moves, shop: [*moves[:2], resigned(moves[2], shop, after="")], "does not follow move 2"),
        (lambda moves, shop: [*moves[:2], resigned(moves[2], shop, model="other")], "its row is not what was signed"),
        (lambda moves, shop: [*moves[:2], resigned(moves[2], shop, address="0")], "put another artifact into"),
    ],
)  # fmt: skip
def test_a_broken_chain_is_refused(shop: Shop, tamper: Callable[[list[Move], Shop], list[Move]], sentence: str) -> None:
    three_moves(shop)
    signers = Signers.read(shop.signers)
    with Registry.open(shop.url) as registry:
        version, moves = registry.resolve("tiny@production"), registry.moves("tiny")
    assert history.check(version, moves, signers)[0].move == 3
    with pytest.raises(SecateurError, match=sentence):
        history.check(version, tamper(moves, shop), signers)


def test_a_roll_back_to_what_was_never_promoted_is_refused(shop: Shop) -> None:
    shop.added(1.0)
    shop.added(2.0)
    assert shop("promote", "tiny@1") == 0
    with Registry.open(shop.url) as registry:
        version, moves = registry.resolve("tiny@2"), registry.moves("tiny")
    back = history.next_move(moves, version, Move(0, "rollback", 2, 1, "", ""), read_private(shop.key))
    with pytest.raises(RegistryError, match="returns to tiny@2, which no signed move has promoted"):
        history.check(version, [*moves, back], Signers.read(shop.signers))


def test_moves_of_version_1_stay_and_are_refused_until_somebody_promotes_anew(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.added(1.0)
    with Registry.open(shop.url) as registry:
        run = registry._database.execute
        for table in ("moves", "gates"):
            for column in ("statement", "signature"):
                run(f"ALTER TABLE {table} DROP COLUMN {column}")
        run("INSERT INTO moves VALUES ('tiny', 1, 1, 'promote', NULL, 'gates passed: faq', 'then')")
        run("UPDATE registry SET version = 1")
    assert shop("verify", "tiny@1", "--signers", shop.signers) == 2
    error = capsys.readouterr().err
    assert "move 1 of tiny, to version 1, is not signed" in error
    assert "promote it anew: `secateur registry promote NAME@NUMBER --key KEY`" in error
    assert shop("promote", "tiny@1", "--signers", shop.signers) == 0
    assert shop("verify", "tiny@1", "--signers", shop.signers) == 0
    with Registry.open(shop.url) as registry:
        assert [bool(move.statement) for move in registry.moves("tiny")] == [False, True]
        signers, version = Signers.read(shop.signers), registry.resolve("tiny@1")
        first, second = registry.moves("tiny")
    with pytest.raises(RegistryError, match="move 2 of tiny does not follow move 1"):
        history.check(version, [replace(first, reason="changed"), second], signers)


def team(shop: Shop, *more: str, **roles: str) -> dict[str, Path]:
    """New keys with these roles beside the shop's; their files by name."""
    lines, files = [*shop.signers.read_text().splitlines(), *more], {}
    for name, wanted in roles.items():
        files[name] = shop.folder / f"{name}.pem"
        line = keys.Signer(name, keys.create(files[name], elliptic=False)).line
        lines.append(f"{line} roles={wanted}")
    shop.signers.write_text("\n".join(lines))
    return files


def test_a_key_does_what_its_roles_say(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    files = team(shop, bob="evaluate,approve", eve="promote")
    shop.added(1.0)
    assert shop("promote", "tiny@1", "--signers", shop.signers, "--key", files["bob"]) == 2
    assert "signed by bob, whose line of" in (error := capsys.readouterr().err)
    assert "has the roles evaluate, approve and not promote" in error
    assert shop("promote", "tiny@1", "--signers", shop.signers, "--key", files["eve"]) == 0
    shop.added(2.0, FAILED)
    assert shop("approve", "tiny@2", "--key", files["eve"], "--reason", "mine", "--override") == 0
    assert shop("promote", "tiny@2", "--signers", shop.signers) == 2
    assert "the roles promote and not approve" in capsys.readouterr().err
    assert shop("approve", "tiny@2", "--key", files["bob"], "--reason", "fine", "--override") == 0
    assert shop("promote", "tiny@2", "--signers", shop.signers) == 0


def test_a_record_counts_as_evaluated_only_if_its_signer_may_evaluate(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.added(1.0)
    shop.signers.write_text(f"{shop.signers.read_text()} roles=sign,promote")
    assert shop("promote", "tiny@1", "--signers", shop.signers) == 2
    assert "has no gate result that an allowed signer signed" in capsys.readouterr().err


def test_separate_duties_need_an_approval_by_somebody_else(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    bob = team(shop, "separate = true", bob="approve")["bob"]
    shop.added(1.0)
    promote = ("promote", "tiny@1", "--signers", shop.signers)
    assert shop(*promote) == 2
    assert "nobody approved it" in capsys.readouterr().err
    with Registry.open(shop.url) as registry:
        version = registry.resolve("tiny@1")
        rules.approve(registry, version, "approval", "read the report", read_private(bob))
    assert shop(*promote) == 0
    shop.added(2.0)
    for key in (bob, shop.key):
        assert shop("approve", "tiny@2", "--key", key, "--reason", "read the report") == 0
    assert shop("promote", "tiny@2", "--signers", shop.signers) == 2
    assert "alice approved and promoted it" in capsys.readouterr().err


def test_the_last_move_seen_is_kept_and_never_left_behind(shop: Shop, tmp_path: Path) -> None:
    three_moves(shop)
    with Registry.open(shop.url) as registry:
        moves = registry.moves("tiny")
    path = tmp_path / "new" / "seen.json"
    LastSeen(path).advance("tiny", moves[:2])
    LastSeen(path).advance("other", moves[:1])
    LastSeen(path).advance("tiny", moves)
    LastSeen(path).advance("tiny", moves)
    for behind in (moves[:2], [*moves[:2], resigned(moves[2], shop, reason="another")]):
        with pytest.raises(RegistryError, match="lacks move 3 of tiny, which this server has seen"):
            LastSeen(path).advance("tiny", behind)
    assert set(msgspec.json.decode(path.read_bytes())) == {"tiny", "other"}
    path.write_text("{")
    with pytest.raises(RegistryError, match="the last moves seen, cannot be read"):
        LastSeen(path).advance("tiny", moves)
    path.unlink()
    path.mkdir()
    with pytest.raises(RegistryError, match="the last moves seen, cannot be read"):
        LastSeen(path).advance("tiny", moves)
    (tmp_path / "full.partial").mkdir()
    with pytest.raises(RegistryError, match="the last moves seen, cannot be written"):
        LastSeen(tmp_path / "full").advance("tiny", moves)
