"""Limits prefill while replies are being read, so that a long prompt does not stall their readers (chunked prefill).

It learns what a pass and each of its tokens cost from past prefill passes, so it adapts to a busy machine.
"""

PASS_SECONDS = 0.03
"""Target duration of a pass: readers tolerate 50 ms between tokens, and HTTP and the ledger need part of it."""
SHORT_PASS_SECONDS = 0.012
"""Target beside a queue: a question of another skill waits for the end of such a pass before its own."""
LEAST = 8
"""Prompt tokens that every pass may compute, so that no prompt starves."""
WEIGHT = 0.1
"""Weight of the latest pass in the moving averages, after the first ten."""


class PrefillBudget:
    """Fits a line to seconds by tokens, and from it tells how many tokens fit into a pass."""

    def __init__(self) -> None:
        self._passes = 0
        self._tokens = self._seconds = self._variance = self._covariance = 0.0

    def record(self, tokens: int, seconds: float) -> None:
        """Record a prefill pass of `tokens` tokens. Tiny passes measure only fixed cost and are ignored."""
        if tokens < LEAST:
            return
        self._passes += 1
        weight = max(WEIGHT, 1 / self._passes)
        more, longer = tokens - self._tokens, seconds - self._seconds
        self._variance = (1 - weight) * (self._variance + weight * more * more)
        self._covariance = (1 - weight) * (self._covariance + weight * more * longer)
        self._tokens += weight * more
        self._seconds += weight * longer

    def tokens(self, decoding: int, most: int, seconds: float = PASS_SECONDS) -> int:
        """The token limit of a pass of `seconds`, at most `most`: one per `decoding` sequence, the rest for prefill."""
        if not decoding or not self._seconds:
            return most
        fitting = self._tokens + (seconds - self._seconds) / self._token_seconds
        return min(most, max(decoding + LEAST, int(fitting)))

    @property
    def _token_seconds(self) -> float:
        """What a further token costs: the slope of the line, with a fixed part of at most half of a mean pass."""
        mean = self._seconds / self._tokens
        return min(max(self._covariance / self._variance, mean / 2), mean) if self._variance else mean
