"""A server for each test that asks for one."""

from tests.server.harness import serve

__all__ = ["serve"]
