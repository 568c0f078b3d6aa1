"""Which software a result was computed by."""

from importlib.metadata import version


def versions() -> dict[str, str]:
    """Versions of what computes: others may compute other figures."""
    return {name: version(name) for name in ("secateur", "torch", "transformers")}
