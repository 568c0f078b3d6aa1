"""Cuts a stream of text at the first stop string, wherever the chunks are split."""

from collections.abc import Sequence


class StopStrings:
    """Holds back the end of the text while it may be the start of a stop string; `found` is the first one, once met."""

    def __init__(self, strings: Sequence[str]) -> None:
        assert all(strings), "an empty stop string would match everywhere"
        self.found: str | None = None
        self._strings = strings
        self._held = ""

    def push(self, text: str) -> str:
        """The text that can be sent now: never a stop string, nor anything after it."""
        if self.found is not None:
            return ""
        text = self._held + text
        found = [(index, string) for string in self._strings if (index := text.find(string)) >= 0]
        if found:
            index, self.found = min(found, key=lambda pair: pair[0])
            self._held = ""
            return text[:index]
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
