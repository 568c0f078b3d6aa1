"""Citations of a response, by the official client's types."""

import json
from typing import Any

import msgspec
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from server.chat.choices.finished import FinishedChoice, FinishedReply
from server.chat.choices.reply_text import Piece
from server.chat.kept.idempotent_replies import Origin
from server.knowledge.grounding.citations import Citation
from server.knowledge.passages import Passage
from server.metering.ledger.records import Usage
from server.web.api.openai.responses.schema import parse
from tests.server.web.contracts.test_openai_responses import OURS, unknown

CITATION = Citation(Passage("Prune in March.", "Roses", "https://x.example/roses#when"), 0, 9)
REPLY = FinishedReply((FinishedChoice("In March.", "stop", citations=(CITATION,)),), Usage(7, 0, 4))


def test_a_citation_is_an_annotation_of_the_text() -> None:
    wanted = parse(msgspec.json.encode({"model": "help", "input": "When?"}))
    form, other = (wanted.format(Origin("body", "req_1", 5)) for _ in range(2))
    pieces = [Piece("In "), Piece("March.", citations=(CITATION,))]
    events = [*form.opening(7), *(event for piece in pieces for event in form.piece(piece)), *form.ending(REPLY)]
    told: list[Any] = [json.loads(str(event.data)) for event in events]
    for data in told:
        assert unknown(TypeAdapter[Any](ResponseStreamEvent).validate_python(data)) <= OURS
    [added] = [data for data in told if data["type"] == "response.output_text.annotation.added"]
    expected = {"type": "url_citation", "url": CITATION.passage.url, "start_index": 0, "end_index": 9}
    assert added["annotation"].items() >= expected.items()
    whole = json.loads(other.whole(REPLY.choices[0].piece, REPLY))
    assert unknown(Response.model_validate(whole)) <= OURS
    for response in (whole, told[-1]["response"]):
        assert response["output"][0]["content"][0]["annotations"] == [added["annotation"]]
