"""Text to token ids and back, chat templates included; what users write never becomes a special token.

Reads the files that Hugging Face writes beside a model, without torch or transformers."""

import codecs
import re
import secrets
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec
import tiktoken
import tokenizers
from tokenizers.decoders import DecodeStream

from server.errors import ArtifactError
from server.text.chat_template import ChatTemplate
from server.text.encoding import Unrecognised, build_encoding, byte_alphabet, wants_nfc
from server.text.extensions import special_tokens


class Tokenizer:
    """The tokenizer of one artifact; safe to use from several threads at once."""

    def __init__(self, definition: bytes, template: ChatTemplate | None, stop_ids: frozenset[int]) -> None:
        parsed = msgspec.json.decode(definition, type=dict[str, Any])
        self._template = template
        self._marked = tokenizers.Tokenizer.from_buffer(definition)  # special tokens in text are special
        self._plain = tokenizers.Tokenizer.from_buffer(definition)  # special tokens in text are text
        self._plain.encode_special_tokens = True
        added = self._plain.get_added_tokens_decoder()
        self._specials = {token.content: id for id, token in added.items() if token.special}
        self._special_ids = frozenset(self._specials.values())
        longest_first = sorted(self._specials, key=len, reverse=True)
        self._special_pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._ordinary = frozenset(token.content for token in added.values() if not token.special)
        self._nfc = wants_nfc(parsed)
        self.stop_ids = stop_ids
        self.vocabulary = self._plain.get_vocab_size(with_added_tokens=True)
        self.token_bytes = self._token_bytes() if _is_byte_level(parsed) else None
        self.encoding, self.encoding_reason = _encoding(parsed)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the directory of an artifact; ArtifactError says which file is wrong."""
        settings = _read_json(path / "tokenizer_config.json")
        named = special_tokens(settings)
        try:
            source = template_source(path, settings)
            template = None if source is None else ChatTemplate(source, named)
            tokenizer = cls((path / "tokenizer.json").read_bytes(), template, _stop_ids(path))
        except OSError as error:
            raise ArtifactError(f"{error.filename} cannot be read: {error.strerror}.") from None
        except ArtifactError:
            raise
        except Exception as error:  # the library raises plain Exception
            raise ArtifactError(f"{path / 'tokenizer.json'} is not a tokenizer: {error}") from None
        if end := tokenizer._specials.get(named.get("eos_token", "")):
            tokenizer.stop_ids |= {end}
        return tokenizer

    def encode(self, text: str) -> list[int]:
        """The ids of a text as it stands: no special token is added, and none is recognised."""
        return self._plain.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, without special tokens."""
        return self._plain.decode(list(ids), skip_special_tokens=True)

    def spelling(self, id: int) -> tuple[str, bytes | None]:
        """One id as text, U+FFFD where it is half of a character, and its bytes; None for those of special tokens."""
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

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The ids of a conversation up to where the assistant speaks.

        Raises InvalidRequest if the template refuses the messages, ArtifactError if there is none or it fails."""
        if self._template is None:
            raise ArtifactError("The model has no chat template: it is not a chat model.")
        if not any(self._special_pattern.search(value) for message in messages for value in message.values()):
            rendered = self._template.render(messages)
            ids = self._marked.encode(rendered, add_special_tokens=False).ids
            # More than the template wrote: a normalizer made one of letters that only look like it.
            if sum(map(self._special_ids.__contains__, ids)) <= len(self._special_pattern.findall(rendered)):
                return ids
        return self._chat_with_specials(self._template, messages)

    def count(self, text: str) -> int:
        """How many ids `encode` gives, without making them wait for it where tiktoken can count."""
        if self.encoding is None:
            return len(self.encode(text))
        normal = unicodedata.normalize("NFC", text) if self._nfc else text
        try:
            ids = self.encoding.encode(normal, allowed_special=self._ordinary, disallowed_special=())
        except ValueError:  # its regular expressions give up on very long runs of spaces
            return len(self.encode(text))
        # Beyond the vocabulary: a byte it lacks, which the tokenizer drops before it merges the neighbours.
        return len(ids) if max(ids, default=0) < self.vocabulary else len(self.encode(text))

    def stream(self) -> DecodeStream:
        """The library's own incremental decoder, for tokenizers that are not byte-level."""
        return DecodeStream(skip_special_tokens=True)

    def step(self, stream: DecodeStream, id: int) -> str:
        """What one more id adds to a stream, perhaps nothing yet."""
        return stream.step(self._plain, id) or ""

    def _chat_with_specials(self, template: ChatTemplate, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Render with a mark in place of each special token that a message holds, and encode it back as text."""
        nonce = secrets.randbits(64)
        marks = {special: f"\ue000{nonce}.{id}\ue001" for special, id in self._specials.items()}
        contents = {mark: special for special, mark in marks.items()}
        hidden = [
            {key: self._special_pattern.sub(lambda found: marks[found[0]], value) for key, value in message.items()}
            for message in messages
        ]
        rendered = template.render(hidden)
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

    def _token_bytes(self) -> list[bytes]:
        """The bytes of each id; none for special tokens."""
        alphabet = byte_alphabet()
        table = [b""] * (1 + max(self._plain.get_vocab(with_added_tokens=True).values()))
        for token, id in self._plain.get_vocab(with_added_tokens=True).items():
            if token not in self._specials:
                known = all(letter in alphabet for letter in token)
                table[id] = bytes(map(alphabet.__getitem__, token)) if known else token.encode()
        return table


class TextStream:
    """Text of ids as they come; holds a character back until all its bytes are there."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._table = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stream = tokenizer.stream()
        self._ids: list[int] = []
        self._sent = 0

    def push(self, id: int) -> str:
        """The text that this id completes, perhaps none."""
        if self._table is not None:
            return self._decoder.decode(self._table[id]) if id < len(self._table) else ""
        self._ids.append(id)
        text = self._tokenizer.step(self._stream, id)
        self._sent += len(text)
        return text

    def finish(self) -> str:
        """What was held back, with U+FFFD for characters that never became complete."""
        if self._table is not None:
            return self._decoder.decode(b"", final=True)
        return self._tokenizer.decode(self._ids)[self._sent :]


def _encoding(parsed: dict[str, Any]) -> tuple[tiktoken.Encoding | None, str]:
    try:
        return build_encoding(parsed), "tiktoken, with the model's own byte-level vocabulary and pattern"
    except Unrecognised as error:
        return None, f"tokenizers, since tiktoken might count otherwise: {error}"


def _is_byte_level(parsed: dict[str, Any]) -> bool:
    return (parsed.get("decoder") or {}).get("type") == "ByteLevel"


def template_source(path: Path, settings: dict[str, Any]) -> str | None:
    """The template in its own file, or in the settings: a string, or several of which one is the default."""
    file = path / "chat_template.jinja"
    if file.exists():
        return file.read_text()
    source = settings.get("chat_template")
    if isinstance(source, list):
        source = next((entry["template"] for entry in source if entry.get("name") == "default"), None)
    return source if isinstance(source, str) else None


def _stop_ids(path: Path) -> frozenset[int]:
    """Every end-of-text id that the model's own files name."""
    found: list[object] = []
    for name in ("generation_config.json", "config.json"):
        if (path / name).exists():
            end = _read_json(path / name).get("eos_token_id")
            found += end if isinstance(end, list) else [end]
    return frozenset(id for id in found if isinstance(id, int))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from None
