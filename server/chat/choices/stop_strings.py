"""Cuts a stream of text at the first stop string, wherever the chunks are split."""

from collections.abc import Sequence


class StopStrings:
    """Holds back the end of the text while it may be the start of a stop string; `matched` once one was found."""

    def __init__(self, strings: Sequence[str]) -> None:
        assert all(strings), "an empty stop string would match everywhere"
        self.matched = False
        self._strings = strings
        self._held = ""

    def push(self, text: str) -> str:
        """The text that can be sent now: never a stop string, nor anything after it."""
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
        """The text still held back, at the end of the stream."""
        held, self._held = self._held, ""
        return held

    def _possible_start(self, text: str) -> int:
        """The length of the longest suffix of `text` that starts a stop string."""
        longest = min(len(text), max((len(string) for string in self._strings), default=1) - 1)
        for length in range(longest, 0, -1):
            if any(string.startswith(text[-length:]) for string in self._strings):
                return length
        return 0
