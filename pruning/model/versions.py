"""The software versions that a result depends on."""

from importlib.metadata import version


def versions() -> dict[str, str]:
    """Versions of the packages that compute figures; other versions may give other figures."""
    return {name: version(name) for name in ("secateur", "torch", "transformers")}
