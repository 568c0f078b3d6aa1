"""Which logprobs are sent with which text, for random texts, stop strings and ends, compared with the whole text."""

import math
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers

from server.chat.choices.live import Choice
from server.chat.choices.logprobs import LEAST, PendingLogprobs
from server.chat.choices.reply_text import Piece, ReplyText, TextOptions
from server.chat.reply import Reply
from server.engine.sequence import Finish
from server.engine.sequence import Logprobs as Position
from server.engine.stream import Token
from server.text.tokenizer import Tokenizer
from tests.support.harness import tokenizer as bytewise

LETTERS = "abü🌱"


class Known:
    """A stream of known tokens and a reservation that counts nothing."""

    cached = sampled = ready = prompt = most = 0
    prompt_computed = True
    waited = reported = None
    full = "length"

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = iter(tokens)

    async def __anext__(self) -> Token:
        return next(self._tokens)

    async def aclose(self) -> None: ...

    async def count(self, tokens: int, **counts: Any) -> None: ...

    async def settle(self, outcome: str, **counts: Any) -> None: ...


def pieces(tokenizer: Tokenizer, tokens: list[Token], stops: list[str]) -> tuple[list[Piece], bool]:
    """All pieces of a reply, and whether a stop string ended it."""
    known: Any = Known(tokens)
    text = ReplyText(tokenizer, TextOptions(tuple(stops)))

    async def ended(reply: Reply) -> None: ...

    async def read() -> list[Piece]:
        reply = Reply([Choice(0, known, text, leads=True)], known, {}, ended)
        return [piece async for piece in reply.pieces()]

    return anyio.run(read), text.stopped


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return bytewise(tmp_path_factory.mktemp("words"))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    text=st.text(LETTERS, min_size=1, max_size=12),
    stops=st.lists(st.text(LETTERS, min_size=1, max_size=3), max_size=2),
    finish=st.sampled_from(["stop", "length"]),
    lost=st.integers(0, 3),
)
def test_a_token_is_reported_with_its_first_character(
    words: Tokenizer, text: str, stops: list[str], finish: Finish, lost: int
) -> None:
    ids = words.encode(text)
    ids = ids[: max(1, len(ids) - lost)] if finish == "length" else [*ids, next(iter(words.stop_ids))]
    tokens = [Token(id, None, Position(-float(place), ())) for place, id in enumerate(ids)]
    tokens[-1] = tokens[-1]._replace(finish=finish)
    read, matched = pieces(words, tokens, stops)
    raw = text.encode()[: len(ids) if finish == "length" else None]
    begins = [len([byte for byte in raw[: place + 1] if byte & 0xC0 != 0x80]) - 1 for place in range(len(raw))]
    sent = ""
    told: list[float] = []
    for piece in read:
        sent += piece.text
        told += [score.logprob for score in piece.logprobs]
        # Whatever was told belongs to a character that was sent, and all of these were told; the last may be U+FFFD.
        assert told == [-place for place, begin in enumerate(begins) if begin < len(sent)]
    assert matched or sent == raw.decode(errors="replace")
    assert [score.bytes for piece in read for score in piece.logprobs] == [(raw[-int(place)],) for place in told]


def test_a_token_without_text_is_reported_too(words: Tokenizer) -> None:
    mark = words.vocabulary - 2
    tokens = [Token(id, None, Position(-1.0, ((mark, -math.inf),))) for id in (mark, *words.encode("a"), mark)]
    tokens.append(Token(next(iter(words.stop_ids)), "stop", Position(-1.0, ())))
    read, _ = pieces(words, tokens, [])
    assert [(piece.text, [score.token for score in piece.logprobs]) for piece in read] == [
        ("a", ["<|im_start|>", "a"]),
        ("", ["<|im_start|>"]),
    ]
    assert read[0].logprobs[0].bytes is None
    assert read[0].logprobs[1].top_logprobs[0].logprob == LEAST  # JSON has no infinity


def test_without_logprobs_nothing_is_reported(words: Tokenizer) -> None:
    logprobs = PendingLogprobs(words)
    logprobs.add(Token(3, None), "a")
    assert logprobs.take("a", last=True) == ()


def test_tokens_of_other_tokenizers_are_spelt(tmp_path: Path) -> None:
    vocab = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}, "▁": 257, "▁a": 258}
    library = Library(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    library.normalizer = normalizers.Replace(" ", "▁")
    library.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    library.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.spelling(258) == (" a", b" a")
    assert tokenizer.spelling(1 + 0xE2) == ("\N{REPLACEMENT CHARACTER}", b"\xe2")
    assert tokenizer.spelling(1 + ord("x")) == ("x", b"x")
    assert tokenizer.spelling(999) == ("", None)
