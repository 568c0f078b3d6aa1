"""A choice whose text was written without a model: a refusal, or a stored answer."""

from server.chat.choices.reply_text import Piece
from server.engine.sequence import Finish
from server.metering.ledger.records import Outcome, Usage
from server.metering.meter import Reservation


class NoStream:
    """The stream of a choice that the engine never sees."""

    waited: float | None = None
    reported = False

    async def aclose(self) -> None:
        """Nothing to free."""


class WrittenChoice:
    """One choice with the whole `text`; `outcome` says why no model wrote it."""

    def __init__(self, index: int, text: str, outcome: Outcome) -> None:
        self.index = index
        self.finish: Finish | None = None
        self.outcome = outcome
        self.computed = Usage()
        self.stream = NoStream()
        self._text = text

    def interrupt(self) -> None:
        """Nothing: the text is there."""

    async def next(self, reservation: Reservation) -> Piece:
        """The whole text; nothing is counted."""
        self.finish = "stop"
        return Piece(self._text, choice=self.index)
