"""Encodes documents and prompts with a model's tokenizer and chat template, exactly as the server does."""

from collections.abc import Sequence
from datetime import datetime
from functools import cached_property

import torch
from torch import Tensor

from pruning.data.documents import Document, Messages
from pruning.errors import DataError, ModelRefused
from server.artifact.checkpoint.reader import Artifact
from server.errors import ArtifactError, InvalidRequest
from server.text import tokenizer_files
from server.text.codec import TextCodec

DAY = datetime(2026, 1, 1)
"""The date that templates write: today's would change the ids at midnight, and a killed run would begin anew."""


class Encoder:
    """The tokenizer and chat template of `artifact`; raises ModelRefused for ids beyond its embeddings."""

    def __init__(self, artifact: Artifact) -> None:
        files = tokenizer_files.read(artifact.path)
        self._library = files.library
        self._codec = TextCodec(files, clock=lambda: DAY)
        self._words = artifact.config.get("vocab_size")
        end = artifact.config.get("eos_token_id")
        self.end: list[int] = (end[:1] if isinstance(end, list) else [end]) if end is not None else []
        """The end-of-sequence id, or nothing."""
        self._refuse_unknown(self.end, "config.json's eos_token_id is")

    def encode(self, document: Document) -> list[int]:
        """The ids of `document` and the end-of-sequence id."""
        if document.messages is None:
            return self.ids(document.body) + self.end
        return self.prompt(document.messages, reply=False) + self.end

    def ids(self, text: str) -> list[int]:
        """The ids of `text` alone; special tokens in it are recognised."""
        return self._known(self._library.encode(text, add_special_tokens=False).ids)

    def prompt(self, messages: Messages, *, reply: bool = True) -> list[int]:
        """The ids of a conversation, identical to the prompt ids of the server.

        With `reply`, up to where the assistant begins to speak. Raises DataError where there is no template or it
        fails on the messages.
        """
        _refuse_odd(messages)
        try:
            return self._known(self._codec.chat(messages, reply=reply))
        except (ArtifactError, InvalidRequest) as error:
            raise DataError(f"the messages in the data cannot be rendered: {error}") from None

    def render(self, messages: Messages, *, reply: bool = False) -> str:
        """The conversation as text; raises as `prompt`."""
        _refuse_odd(messages)
        try:
            return self._codec.template.render(messages, reply=reply)
        except (ArtifactError, InvalidRequest) as error:
            raise DataError(f"the messages in the data cannot be rendered: {error}") from None

    @cached_property
    def start(self) -> list[int]:
        """The special token id that the tokenizer adds before a text; an empty list if it adds none."""
        return list(self._library.encode("").ids[:1])

    def begun(self, ids: Tensor) -> Tensor:
        """`ids` [sequences, tokens] with `start` before each sequence, as models that were trained with it need."""
        return torch.cat([torch.tensor(self.start, dtype=ids.dtype).expand(len(ids), -1), ids], dim=1)

    def spells_special(self, text: str) -> bool:
        """Whether `text` spells a special token."""
        return self._codec.spells_special(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without special tokens."""
        return self._codec.decode(ids)

    def _known(self, ids: list[int]) -> list[int]:
        self._refuse_unknown(ids, "tokenizer.json, which may be another model's, gives the id")
        return ids

    def _refuse_unknown(self, ids: list[int], what: str) -> None:
        """Raise ModelRefused where one of `ids` has no row in the model's embeddings."""
        if isinstance(self._words, int) and ids and not (min(ids) >= 0 and max(ids) < self._words):
            wrong = next(id for id in ids if not 0 <= id < self._words)
            raise ModelRefused(f"{what} {wrong}, but the model has {self._words} tokens (vocab_size in config.json)")


def _refuse_odd(messages: Messages) -> None:
    """Raise DataError for a message that is not an object."""
    for message in messages:
        if not isinstance(message, dict):
            raise DataError(f"a message is {message!r:.60}, not an object with a role and content")
