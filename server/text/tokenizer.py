"""A served model's tokenizer: `TextCodec`, plus fast counting, the bytes of each id, and streams of text.

Counting uses tiktoken where that is certain to give the same number.
"""

import codecs
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import msgspec
import tiktoken
from tokenizers.decoders import DecodeStream

from server.errors import ArtifactError
from server.text import tokenizer_files
from server.text.byte_level import Unrecognised, build_encoding, byte_alphabet, needs_nfc
from server.text.codec import TextCodec
from server.text.grammar.compiler import GrammarCompiler
from server.text.tokenizer_files import TokenizerFiles


class Tokenizer(TextCodec):
    """The tokenizer of one served model; thread-safe."""

    def __init__(self, files: TokenizerFiles) -> None:
        super().__init__(files)
        parsed = msgspec.json.decode(files.definition, type=dict[str, Any])
        added = self._plain.get_added_tokens_decoder().values()
        self._ordinary = frozenset(token.content for token in added if not token.special)
        self._nfc = needs_nfc(parsed)
        self.stop_ids = files.stop_ids
        self.given_template = files.given
        self.grammars = GrammarCompiler(files)
        self.vocabulary = self._plain.get_vocab_size(with_added_tokens=True)
        self.token_bytes = self._token_bytes() if _is_byte_level(parsed) else None
        self.encoding, self.encoding_reason = _encoding(parsed)

    @classmethod
    def load(cls, folder: Path, template: Path | None = None) -> Self:
        """The tokenizer in `folder`, with its template compiled; ArtifactError names the file that is wrong.

        The file `template` is used if the model has no chat template of its own.
        """
        files = tokenizer_files.read(folder)
        if files.chat_template is None and template is not None:
            files = msgspec.structs.replace(files, chat_template=tokenizer_files.read_template(template), given=True)
        try:
            tokenizer = cls(files)
        except Exception as error:  # tokenizer.json in a form that no tokenizer library writes
            raise ArtifactError(f"{folder / tokenizer_files.TOKENIZER} is not a tokenizer: {error}") from None
        if files.chat_template is not None:
            _ = tokenizer.template
        return tokenizer

    def spelling(self, id: int) -> tuple[str, bytes | None]:
        """The text of one id, U+FFFD for a part of a character, and its bytes; None for a special token's."""
        token = self._plain.id_to_token(id)
        if token is None or token in self._specials:
            return token or "", None
        if self.token_bytes is not None:
            raw = self.token_bytes[id]
        elif byte := re.fullmatch("<0x([0-9A-F]{2})>", token):
            raw = bytes.fromhex(byte[1])
        else:
            raw = token.replace("\u2581", " ").encode()
        return raw.decode(errors="replace"), raw

    def tokenise(self, text: str, *, add_special: bool, recognise: bool) -> list[int]:
        """The ids of `text`; `add_special` adds those around every text, `recognise` reads special tokens in it."""
        library = self._recognising if recognise else self._plain
        ids: list[int] = library.encode(text, add_special_tokens=add_special).ids
        return ids

    def detokenise(self, ids: Iterable[int]) -> str:
        """The text of `ids`, special tokens included."""
        return self._plain.decode(list(ids), skip_special_tokens=False)

    def entry(self, id: int) -> str:
        """How the vocabulary writes an id; empty for an unknown one."""
        return self._plain.id_to_token(id) or ""

    def count(self, text: str) -> int:
        """The number of ids that `encode` gives, counted by tiktoken where it can."""
        if self.encoding is None:
            return len(self.encode(text))
        normal = unicodedata.normalize("NFC", text) if self._nfc else text
        try:
            ids = self.encoding.encode(normal, allowed_special=self._ordinary, disallowed_special=())
        except ValueError:  # its regular expressions give up on very long runs of spaces
            return len(self.encode(text))
        # An id beyond the vocabulary is a byte that the tokenizer drops before it merges the neighbours.
        return len(ids) if max(ids, default=0) < self.vocabulary else len(self.encode(text))

    def stream(self) -> DecodeStream:
        """The library's incremental decoder, for tokenizers that are not byte-level."""
        return DecodeStream(skip_special_tokens=True)

    def step(self, stream: DecodeStream, id: int) -> str:
        """The text that `id` completes in `stream`, perhaps none."""
        return stream.step(self._plain, id) or ""

    def _token_bytes(self) -> list[bytes]:
        """The bytes of each id; empty for special tokens."""
        alphabet = byte_alphabet()
        vocabulary = self._plain.get_vocab(with_added_tokens=True)
        table = [b""] * (1 + max(vocabulary.values()))
        for token, id in vocabulary.items():
            if token not in self._specials:
                known = all(letter in alphabet for letter in token)
                table[id] = bytes(map(alphabet.__getitem__, token)) if known else token.encode()
        return table


class TextStream:
    """Turns ids into text as they arrive; an incomplete character is held back."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._table = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stream = tokenizer.stream()
        self._ids: list[int] = []
        self._sent = 0

    def push(self, id: int) -> str:
        """The text that `id` completes, perhaps none."""
        if self._table is not None:
            return self._decoder.decode(self._table[id]) if id < len(self._table) else ""
        self._ids.append(id)
        text = self._tokenizer.step(self._stream, id)
        self._sent += len(text)
        return text

    def finish(self) -> str:
        """The text held back, with U+FFFD for an incomplete character."""
        if self._table is not None:
            return self._decoder.decode(b"", final=True)
        return self._tokenizer.decode(self._ids)[self._sent :]


def _encoding(parsed: dict[str, Any]) -> tuple[tiktoken.Encoding | None, str]:
    """tiktoken's encoding or None, and the sentence that says which one counts and why."""
    try:
        return build_encoding(parsed), "tiktoken, with the model's own byte-level vocabulary and pattern"
    except Unrecognised as error:
        return None, f"tokenizers, since tiktoken might count otherwise: {error}"


def _is_byte_level(parsed: dict[str, Any]) -> bool:
    return (parsed.get("decoder") or {}).get("type") == "ByteLevel"
