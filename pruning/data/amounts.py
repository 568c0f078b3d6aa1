"""How much text a recipe's sources hold beside the tokens that it asks for, by bytes: without torch or a tokenizer."""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

from pruning.data.documents import Document, Messages, documents_of
from pruning.data.hub import PREFIX
from pruning.errors import DataError
from pruning.recipe.recipe import Recipe
from pruning.recipe.sources import SELF, locate
from pruning.recipe.texts import EvaluatedText, WeightedText

BYTES_PER_TOKEN = 4
"""Of English text; other languages have fewer."""
MARKUP = 20
"""Bytes of tokens that a chat template is taken to add to each message."""
LARGEST = 64 << 20
"""Larger files, in bytes, are not read: it would take seconds, and they hold enough."""


class Amount(NamedTuple):
    """The text of one source in the buckets that one part of the recipe draws from."""

    part: str
    """`calibration`, or `evaluation` with the text's name."""
    source: str
    buckets: Sequence[int]
    documents: Sequence[Document]
    sequences: int
    """Sequences to draw; of a mixture, the source's share rounded down."""
    tokens: int
    """Tokens of each sequence."""

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of all documents, without a chat template's."""
        return sum(len(document.body.encode()) for document in self.documents)

    @property
    def too_small(self) -> bool:
        """Whether a token for each byte and an end for each document would not suffice; unknown of conversations."""
        if any(document.messages is not None for document in self.documents):
            return False
        return self.bytes + len(self.documents) < self.sequences * (self.tokens - 1)  # each may begin with a token

    @property
    def is_doubtful(self) -> bool:
        """Whether texts, markup of messages and ends give fewer tokens than are needed, at `BYTES_PER_TOKEN`."""
        markup = MARKUP * sum(len(document.messages or ()) for document in self.documents)
        estimate = (self.bytes + markup) // BYTES_PER_TOKEN + len(self.documents)
        return estimate < self.sequences * self.tokens

    def __str__(self) -> str:
        needed = f"{self.sequences} x {self.tokens} = {self.sequences * self.tokens}"
        place = f"{len(self.documents)} texts of the buckets {sorted(self.buckets)}"
        return f"{self.source} holds {self.bytes} bytes in {place}, but {self.part} needs {needed} tokens"


def amounts(recipe: Recipe) -> Iterator[Amount]:
    """The amount of each calibration and evaluation text in a file of at most `LARGEST` bytes.

    Raises SourceMissing where there is no such file, DataError where it cannot be read.
    """
    read = cache(lambda source: documents_of(source, _contents))
    wanted, measured = recipe.calibration, recipe.evaluation
    whole = sum(text.weight for text in wanted.texts)
    parts: list[tuple[str, WeightedText | EvaluatedText, int, int]] = [
        ("calibration", text, int(wanted.sequences * text.weight / whole), wanted.tokens) for text in wanted.texts
    ]
    windows = max(measured.tokens // measured.window, 1)
    parts += [(f"evaluation {text.name}".strip(), text, windows, measured.window) for text in measured.every]
    for part, text, sequences, tokens in parts:
        if text.source != SELF and not text.source.startswith(PREFIX) and locate(text.source).stat().st_size <= LARGEST:
            documents = [document for document in read(text.source) if document.bucket in text.buckets]
            yield Amount(part, text.source, text.buckets, documents, sequences, tokens)


def refuse_small(recipe: Recipe) -> None:
    """Raise DataError for a text that cannot hold the tokens asked for; raises as `amounts` too."""
    for amount in amounts(recipe):
        if amount.too_small:
            raise DataError(f"{amount}: add text, or ask for fewer")


def _contents(messages: Messages) -> str:
    """What is said in a conversation, without the chat template's own text."""
    return "\n".join(str(message.get("content") or "") for message in messages)
