"""The CPU runtime in C++: forward passes on packed weights, and sampling.

The compiled module is optional; `absent()` gives the reason if it is missing.
"""

from importlib import import_module
from typing import Any


def absent() -> str | None:
    """Why the compiled module cannot be used, or None if it can."""
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
    """The compiled module; raises ImportError if it is absent."""
    return import_module("server.engine.native._core")
