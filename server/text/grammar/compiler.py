"""Compiles grammars for one tokenizer, in a thread of its own.

Nothing is kept between requests: a grammar compiles in a millisecond, and a cache's times would reveal what others ask.
"""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from server.errors import InvalidRequest, Overloaded
from server.text.grammar import bounds
from server.text.grammar.grammar import Grammar, definition
from server.text.grammar.matcher import CompiledGrammar, reason
from server.text.tokenizer_files import TokenizerFiles

STACK = 64 << 20
"""Bytes of the thread's stack: llguidance recurses along references, at most 2,000 in `bounds.MOST_CHARACTERS`."""
FUEL = 100_000
"""Of the lexer at compile time: forced text, the costliest step, is bounded by it to a tenth of a second."""
STATES = 100_000
"""Of a reply's lexer, about 20 MB; real schemas need hundreds."""
MOST_CHECKED = 512
"""Forced tokens that are followed when a grammar is checked."""
PATIENCE = 10
"""Seconds in the queue for the thread."""


class GrammarCompiler:
    """Compiles grammars for the ids of one tokenizer."""

    def __init__(self, files: TokenizerFiles) -> None:
        self._definition = files.definition
        self._ends = files.stop_ids
        self.compiled = 0
        """Grammars compiled, refused ones included."""
        self.seconds = 0.0
        """Time of the thread in which they were."""

    async def compile(self, grammar: Grammar) -> CompiledGrammar:
        """Compile, without holding up the event loop.

        Raises InvalidRequest with the reason, and Overloaded if other grammars take too long.
        """
        try:
            async with asyncio.timeout(PATIENCE):
                return await asyncio.wrap_future(self._thread.submit(self._timed, grammar))
        except TimeoutError:
            raise Overloaded("Other requests' grammars are being compiled; try again later.", retry_after=1) from None

    def unsupported(self) -> str | None:
        """Why this tokenizer cannot be constrained, or None; takes a quarter of a second the first time."""
        return self._thread.submit(self._failure).result()

    @cached_property
    def _thread(self) -> ThreadPoolExecutor:
        pool = ThreadPoolExecutor(1, "grammar")
        size = threading.stack_size(STACK)
        try:
            pool.submit(int).result()  # begins the thread
        finally:
            threading.stack_size(size)
        return pool

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        return LLTokenizer(self._definition.decode(), eos_token=sorted(self._ends) or None)

    def _failure(self) -> str | None:
        try:
            _ = self._tokenizer
        except BaseException as error:
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # Rust's has no module
                raise
            return reason(str(error))
        return None

    def _timed(self, grammar: Grammar) -> CompiledGrammar:
        begin = time.monotonic()
        try:
            return self._compile(grammar)
        finally:
            self.compiled += 1
            self.seconds += time.monotonic() - begin

    def _compile(self, grammar: Grammar) -> CompiledGrammar:
        bounds.check(grammar)
        if failure := self._failure():
            raise InvalidRequest(f"This model's tokenizer cannot be constrained: {failure}.", param=grammar.field)
        limits = LLParserLimits(initial_lexer_fuel=FUEL, max_lexer_states=STATES, verbose_errors=False)
        matcher = LLMatcher(self._tokenizer, definition(grammar), log_level=0, limits=limits)
        vocabulary = self._tokenizer.vocab_size
        compiled = CompiledGrammar(matcher, vocabulary, self._ends, grammar)
        _check_beginning(compiled, grammar)
        return compiled


def _check_beginning(compiled: CompiledGrammar, grammar: Grammar) -> None:
    """Take the forced tokens and one choice, which finds what no text matches and what is too complex at once."""
    state = compiled.begin()
    for _ in range(MOST_CHECKED):
        if state.forced is None or state.failure:
            break
        state.accept(state.forced)
    if not state.failure and not state.complete:
        state.masks(())
    if state.failure:
        raise InvalidRequest(f"{grammar.field} is not supported: {state.failure}.", param=grammar.field)
