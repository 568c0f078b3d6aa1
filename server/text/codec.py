"""Text and conversations to token ids and back; what users write never becomes a special token."""

import re
import secrets
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

import tokenizers
from msgspec.structs import replace

from server.errors import ArtifactError, InvalidRequest
from server.text.chat_template import ChatTemplate, Clock, Message, TemplateOptions, strings, with_strings
from server.text.template_traits import TemplateTraits
from server.text.tokenizer_files import TokenizerFiles
from server.text.tool_form import ToolForm, tool_form


class TextCodec:
    """Encodes and decodes with one model's tokenizer and chat template; thread-safe.

    `clock` is the time that a template may write into a prompt.
    """

    def __init__(self, files: TokenizerFiles, clock: Clock = datetime.now) -> None:
        self._recognising = files.library  # special tokens in text become their ids
        self._plain = tokenizers.Tokenizer.from_buffer(files.definition)  # special tokens in text stay text
        self._plain.encode_special_tokens = True
        self._specials = files.special_ids
        self._special_ids = frozenset(self._specials.values())
        longest_first = sorted(self._specials, key=len, reverse=True)
        self._special_pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._template_source = files.chat_template, files.special_tokens, clock

    @cached_property
    def template(self) -> ChatTemplate:
        """The compiled chat template; raises ArtifactError where there is none or it is not valid."""
        source, special_tokens, clock = self._template_source
        if source is None:
            raise ArtifactError("The model has no chat template, so it cannot serve a chat: `chat_template` names one.")
        return ChatTemplate(source, special_tokens, clock)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; special tokens are neither added nor recognised."""
        return self._plain.encode(text, add_special_tokens=False).ids

    def spells_special(self, text: str) -> bool:
        """Whether `text` spells a special token, which a grammar of it would force as that token."""
        return self._special_pattern.search(text) is not None

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, without special tokens."""
        return self._plain.decode(list(ids), skip_special_tokens=True)

    @cached_property
    def traits(self) -> TemplateTraits:
        """What the chat template can render; raises ArtifactError where there is none or it is not valid."""
        return TemplateTraits(self.template)

    @cached_property
    def tool_form(self) -> ToolForm | None:
        """How the template writes calls; None if it has no tools or no form that a grammar can hold."""
        return tool_form(self.template, self._specials) if self.traits.takes_tools else None

    def chat(
        self, messages: Sequence[Message], *, reply: bool = True, options: TemplateOptions | None = None
    ) -> list[int]:
        """The ids of a conversation, fitted to the template; with `reply`, up to where the assistant begins to speak.

        Raises InvalidRequest where the template refuses the messages, ArtifactError where there is none or it fails.
        """
        options = options or TemplateOptions()
        fitted = self.traits.fitted(messages, continued=options.continued or not reply)
        if not any(map(self._special_pattern.search, strings([*fitted, *options.tools, options.variables]))):
            rendered = self._rendered(fitted, reply, options)
            ids = self._recognising.encode(rendered, add_special_tokens=False).ids
            # More than the template wrote: a normalizer turned letters that only look like a special token into one.
            if sum(map(self._special_ids.__contains__, ids)) <= len(self._special_pattern.findall(rendered)):
                return ids
        return self._chat_with_specials(fitted, reply, options)

    def _rendered(self, messages: Sequence[Message], reply: bool, options: TemplateOptions) -> str:
        """The conversation as text; up to the end of the last message if it is continued."""
        if not options.continued:
            return self.template.render(messages, reply=reply, options=options)
        mark = f"\ue000{secrets.randbits(64)}.end\ue001"
        last = {**messages[-1], "content": messages[-1]["content"] + mark}
        before, found, _ = self.template.render([*messages[:-1], last], reply=False, options=options).rpartition(mark)
        if not found:
            raise InvalidRequest(
                "The model's chat template does not render the last message: it cannot be continued.", param="messages"
            )
        return before

    def _chat_with_specials(self, messages: Sequence[Message], reply: bool, options: TemplateOptions) -> list[int]:
        """Encode messages that spell special tokens as ordinary text, by rendering a mark in place of each."""
        nonce = secrets.randbits(64)
        marks = {special: f"\ue000{nonce}.{id}\ue001" for special, id in self._specials.items()}
        contents = {mark: special for special, mark in marks.items()}

        def hidden(value: Any) -> Any:
            return with_strings(value, lambda text: self._special_pattern.sub(lambda found: marks[found[0]], text))

        concealed = replace(options, tools=hidden(options.tools), variables=hidden(options.variables))
        rendered = self._rendered(hidden(messages), reply, concealed)
        ids: list[int] = []
        position = 0
        for found in [*self._special_pattern.finditer(rendered), None]:
            text = rendered[position : found.start() if found else None]
            text = re.sub(f"\ue000{nonce}\\.\\d+\ue001", lambda mark: contents[mark[0]], text)
            ids += self.encode(text)
            if found:
                ids.append(self._specials[found[0]])
                position = found.end()
        return ids
