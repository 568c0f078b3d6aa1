"""A registry, artifacts for it, a signer and the command, as the tests use them."""

from pathlib import Path
from typing import Any

from server.artifact.checkpoint.lineage import GateResult
from server.artifact.registry.store import Registry
from server.artifact.signing import keys
from server.commands.__main__ import main
from tests.server.artifact.signing.artifacts import make

PASSED = (GateResult("faq", True, {"nll_ratio": 1.02}),)
FAILED = (GateResult("faq", False, {"nll_ratio": 1.9}), GateResult("chat", True))


class Shop:
    """A registry, artifacts for it, a signer and the command."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self.key, self.signers = folder / "alice.pem", folder / "signers"
        self.signers.write_text(keys.Signer("alice", keys.create(self.key, elliptic=False)).line)

    def __call__(self, *words: object) -> int:
        """Run an action; a promotion and a rollback are signed with the shop's key unless they name another."""
        if words[0] in ("promote", "rollback") and "--key" not in words:
            words = (*words, "--key", self.key)
        return main(["registry", "--registry", self.url, *map(str, words)])

    def artifact(self, value: float, gates: tuple[GateResult, ...] | None = PASSED) -> Path:
        path = self.folder / f"model-{value}"
        make(path, value, gates=gates)
        assert main(["sign", str(path), "--key", str(self.key)]) == 0
        return path

    def added(self, value: float, gates: tuple[GateResult, ...] | None = PASSED) -> Path:
        path = self.artifact(value, gates)
        assert self("add", "tiny", path) == 0
        return path

    def rows(self) -> list[list[tuple[Any, ...]]]:
        """Everything in the registry."""
        tables = ("models", "versions", "paths", "gates", "approvals", "aliases", "moves", "bindings")
        with Registry.open(self.url) as registry:
            return [sorted(registry._database.execute(f"SELECT * FROM {table}"), key=str) for table in tables]

    def production(self) -> int | None:
        with Registry.open(self.url) as registry:
            return registry.aliases("tiny").get("production")
