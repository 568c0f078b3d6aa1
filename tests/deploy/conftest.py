"""A server for each test that asks for one."""

from tests.support.harness import serve

__all__ = ["serve"]
