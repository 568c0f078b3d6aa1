"""Limits prefill while replies are being read, so that a long prompt does not stall their readers (chunked prefill).

It learns the cost of a token from past prefill passes, so it adapts to a busy machine.
"""

PASS_SECONDS = 0.03
"""Target duration of a pass: readers tolerate 50 ms between tokens, and HTTP and the ledger need part of it."""
LEAST = 8
"""Prompt tokens that every pass may compute, so that no prompt starves."""
WEIGHT = 0.25
"""Weight of the latest pass in the moving average."""


class PrefillBudget:
    """Estimates seconds per token, and from it how many tokens fit into a pass."""

    def __init__(self) -> None:
        self._seconds: float | None = None

    def record(self, tokens: int, seconds: float) -> None:
        """Record a prefill pass of `tokens` tokens. Tiny passes measure only fixed cost and are ignored."""
        if tokens < LEAST:
            return
        cost = seconds / tokens
        self._seconds = cost if self._seconds is None else self._seconds + WEIGHT * (cost - self._seconds)

    def tokens(self, decoding: int, most: int) -> int:
        """The token limit of the next pass, at most `most`: one per `decoding` sequence, the rest for prefill."""
        if not decoding or not self._seconds:
            return most
        return min(most, max(decoding + LEAST, int(PASS_SECONDS / self._seconds)))
