"""`secateur keys create`: makes an API key; the server only ever sees its SHA-256."""

import argparse
import secrets
from collections.abc import Sequence

from server.skills import digest


def main(argv: Sequence[str]) -> int:
    """Print a new key once, and the line that lets it in."""
    parser = argparse.ArgumentParser(prog="secateur keys", description="Make API keys.")
    parser.add_argument("action", choices=["create"])
    parser.parse_args(argv)
    key = f"sk-{secrets.token_urlsafe(32)}"
    print(f'The key, shown this once:\n  {key}\nIn the skill\'s TOML file:\n  keys = ["{digest(key)}"]')
    return 0
