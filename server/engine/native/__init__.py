"""The CPU runtime in C++: packed weights, and products with them.

The compiled part is optional: `absent()` says in a sentence why it is not there.
"""

from importlib import import_module
from typing import Any


def absent() -> str | None:
    """Why the compiled part cannot be used, or None where it can."""
    try:
        import_module("server.engine.native._core")
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "server.engine.native._core":
            return (
                "the C++ runtime was not built when Secateur was installed: "
                "install a C++20 compiler such as g++ and the headers of Python, and run `pip install` again"
            )
        return f"the C++ runtime cannot be loaded: {error}; run `pip install` again on this machine"
    return None


def core() -> Any:
    """The compiled module; raises ImportError where `absent` gives a reason."""
    return import_module("server.engine.native._core")
