"""The option `--base-cache`, which the commands that read a base model share."""

import argparse
from pathlib import Path


def add_base_cache(options: argparse.ArgumentParser) -> None:
    """Add `--base-cache DIR` to a command's options."""
    options.add_argument(
        "--base-cache",
        type=Path,
        default=Path("build/base"),
        metavar="DIR",
        help="where imported base models are kept (default: build/base)",
    )
