"""Cuts a stream of text at the first stop string, however the pieces fall.

It holds back only what may still be the beginning of a stop string, and knows nothing of tokens.
"""

from collections.abc import Sequence


class StopStrings:
    """`push` text and send on what it returns; `matched` once one of `strings` appeared."""

    def __init__(self, strings: Sequence[str]) -> None:
        assert all(strings), "an empty stop string would match everywhere"
        self.matched = False
        self._strings = strings
        self._held = ""

    def push(self, text: str) -> str:
        """The text that may be sent now; the stop string itself and what follows it never are."""
        if self.matched:
            return ""
        text = self._held + text
        found = [index for string in self._strings if (index := text.find(string)) >= 0]
        if found:
            self.matched = True
            self._held = ""
            return text[: min(found)]
        keep = self._possible_start(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back, now that no more text comes."""
        held, self._held = self._held, ""
        return held

    def _possible_start(self, text: str) -> int:
        """The length of the longest end of `text` that begins a stop string."""
        longest = min(len(text), max((len(string) for string in self._strings), default=1) - 1)
        for length in range(longest, 0, -1):
            if any(string.startswith(text[-length:]) for string in self._strings):
                return length
        return 0
