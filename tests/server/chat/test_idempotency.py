"""The cache of replies by Idempotency-Key; tests/server/web/test_budgets.py has it over HTTP."""

from server.chat.idempotency import KeptReplies, KeptReply
from server.metering.ledger.records import Usage


def test_kept_replies_are_bounded_in_bytes_and_time() -> None:
    now = [0.0]
    replies = KeptReplies(seconds=10, most=5000, clock=lambda: now[0])
    for index in range(20):
        replies.keep(f"k{index}", KeptReply("body", "r", 0, "x" * 100, "stop", None, Usage()))
    kept = [index for index in range(20) if replies.find(f"k{index}", "body")]
    assert kept == list(range(20 - len(kept), 20))
    assert len(kept) == 5000 // (512 + 400)
    now[0] = 11
    assert replies.find("k19", "body") is None
    replies.keep("large", KeptReply("body", "r", 0, "x" * 9000, "stop", None, Usage()))
    assert replies.find("large", "body") is None
