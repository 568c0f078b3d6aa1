"""Replies kept by Idempotency-Key; tests/server/web/test_budgets.py has it over HTTP."""

import asyncio

import pytest

from server.chat.choices.finished import FinishedChoice, FinishedReply
from server.chat.choices.logprobs import TokenLogprob, TopLogprob
from server.chat.choices.prompt import PromptShown, PromptToken, RankedToken
from server.chat.kept.idempotency import OVERHEAD, KeptReplies, KeptReply
from server.chat.kept.sealing import Seal
from server.chat.kept.texts import Texts
from server.chat.tools.calls import CallPart
from server.errors import InvalidRequest
from server.knowledge.grounding.citations import Citation
from server.knowledge.passages import Passage
from server.metering.ledger.records import Usage


def kept(text: str) -> KeptReply:
    return KeptReply("body", "r", 0, FinishedReply((FinishedChoice(text, "stop"),), Usage()))


def test_kept_replies_are_bounded_in_bytes_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("server.chat.kept.idempotency.now", lambda _: now[0])
    texts = Texts()
    replies = KeptReplies(texts, seconds=10, most=5000)

    async def fill() -> list[int]:
        for index in range(20):
            now[0] = index / 100
            await replies.keep(f"k{index}", kept("x" * 100))
        return [index for index in range(20) if await replies.find(f"k{index}", "body")]

    found = asyncio.run(fill())
    assert found == list(range(20 - len(found), 20))
    assert 5000 // (OVERHEAD + 400) <= len(found) <= 5000 // (OVERHEAD + 100)
    now[0] = 11
    assert asyncio.run(replies.find("k19", "body")) is None
    asyncio.run(replies.keep("large", kept("x" * 9000)))
    assert asyncio.run(replies.find("large", "body")) is None
    texts.close()


def test_a_kept_reply_comes_back_whole_and_for_its_own_body_only() -> None:
    token = TokenLogprob("a", (97,), -0.5, (TopLogprob("b", None, -1.0),))
    ranked = RankedToken(1, "a", b"a", 0.0, 1)
    choice = FinishedChoice(
        "a\u20ac",
        "length",
        (token,),
        (1, 2),
        PromptShown((1, 2), "ab", ranked, (PromptToken(ranked, (ranked,)),)),
        2,
        "stop",
        (CallPart(0, "id", "name", "{}"),),
        (Citation(Passage("text", "title", "https://docs.example", ("a",)), 0, 1),),
    )
    reply = KeptReply("body", "req_1", 5, FinishedReply((choice,), Usage(1, 0, 2), "budget", 7))
    texts = Texts(seal=Seal([b"k" * 32]))
    replies = KeptReplies(texts)
    asyncio.run(replies.keep("key", reply))
    assert asyncio.run(replies.find("key", "body")) == reply
    with pytest.raises(InvalidRequest, match="different request"):
        asyncio.run(replies.find("key", "other"))
    texts.close()
