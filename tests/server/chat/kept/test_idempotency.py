"""The cache of replies by Idempotency-Key; tests/server/web/test_budgets.py has it over HTTP."""

from server.chat.choices.finished import FinishedChoice, FinishedReply
from server.chat.kept.idempotency import KeptReplies, KeptReply
from server.metering.ledger.records import Usage


def kept(text: str) -> KeptReply:
    return KeptReply("body", "r", 0, FinishedReply((FinishedChoice(text, "stop"),), Usage()))


def test_kept_replies_are_bounded_in_bytes_and_time() -> None:
    now = [0.0]
    replies = KeptReplies(seconds=10, most=5000, clock=lambda: now[0])
    for index in range(20):
        replies.keep(f"k{index}", kept("x" * 100))
    found = [index for index in range(20) if replies.find(f"k{index}", "body")]
    assert found == list(range(20 - len(found), 20))
    assert len(found) == 5000 // (512 + 400)
    now[0] = 11
    assert replies.find("k19", "body") is None
    replies.keep("large", kept("x" * 9000))
    assert replies.find("large", "body") is None
