"""The moves of a model as a chain: a move contains the digest of the move before, and the last must be signed.

The database's owner can add, change and remove rows. An added or changed row breaks the chain or lacks a signature; a
removed one is noticed by a server that remembers a later move (`server.artifact.registry.seen`).
"""

import hashlib
from collections.abc import Sequence

import msgspec

from server.artifact.registry import statements
from server.artifact.registry.statements import MoveStatement, Signed
from server.artifact.registry.store import Move, Version, now
from server.artifact.signing.keys import PrivateKey, Signer, Signers
from server.errors import RegistryError


def digests(moves: Sequence[Move]) -> list[str]:
    """The digest of each move: of its statement, or, if it is not signed, of its row and the digest before."""
    found: list[str] = []
    for move in moves:
        text = move.statement.encode() or msgspec.json.encode((found[-1] if found else "", move))
        found.append(hashlib.sha256(text).hexdigest())
    return found


def next_move(moves: Sequence[Move], version: Version, move: Move, key: PrivateKey) -> Move:
    """`move`, signed, as the next after `moves`; its number and time are set here."""
    stated = MoveStatement(
        "move",
        version.model,
        len(moves) + 1,
        move.kind,
        version.number,
        version.address,
        move.previous,
        move.reason,
        digests(moves)[-1] if moves else "",
        statements.key_of(key),
        now(),
    )
    one = statements.signed(stated, key)
    return Move(
        stated.move, move.kind, version.number, move.previous, move.reason, stated.time, one.statement, one.signature
    )


def check(version: Version, moves: Sequence[Move], signers: Signers) -> tuple[MoveStatement, Signer]:
    """The last move, which put `version` into production, and who signed it.

    Raises RegistryError or SignatureError naming the move that is not signed, not by an allowed signer, changed, or
    not chained to the one before. Earlier signers need not be allowed any more: the last one signed the whole chain.
    """
    if not moves:
        raise RegistryError(f"{version.model} has nothing in production")
    promoted = _check_chain(version.model, moves)
    last = moves[-1]
    what = f"move {last.move} of {version.model}"
    if not last.statement:
        raise RegistryError(
            f"{what}, to version {last.number}, is not signed: somebody wrote it into the registry, or an older "
            f"program did; check the version and promote it anew: `secateur registry promote NAME@NUMBER --key KEY`"
        )
    one = Signed(last.statement, last.signature)
    stated, signer = statements.verified(one, MoveStatement, what, signers, "promote")
    if (stated.number, stated.address) != (version.number, version.address):
        raise RegistryError(f"{what} put another artifact into production than {version.name} is now")
    if stated.kind == "rollback" and stated.address not in promoted:
        raise RegistryError(f"{what} returns to {version.name}, which no signed move has promoted: promote it anew")
    return stated, signer


def _check_chain(model: str, moves: Sequence[Move]) -> set[str]:
    """The addresses that signed moves promoted; raises RegistryError naming the first move that breaks the chain."""
    promoted, before = set(), ["", *digests(moves)]
    for index, move in enumerate(moves):
        what = f"move {move.move} of {model}"
        if move.move != index + 1:
            raise RegistryError(f"move {index + 1} of {model} was removed from the registry")
        if not move.statement:
            continue
        stated = statements.decoded(move.statement, MoveStatement, what)
        if stated.model != model or not stated.matches(move):
            raise RegistryError(f"{what} was changed: its row is not what was signed")
        if stated.after != before[index]:
            raise RegistryError(f"{what} does not follow move {index}: a move before it was changed or removed")
        if stated.kind == "promote":
            promoted.add(stated.address)
    return promoted
