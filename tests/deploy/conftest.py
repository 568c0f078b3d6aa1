"""The `serve` fixture."""

from tests.support.harness import serve

__all__ = ["serve"]
