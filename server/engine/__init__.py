"""From token ids to token ids: continuous batching with no knowledge of HTTP or text."""
