"""Writes what a first server needs: its settings, one skill, and a file with one key."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgspec import Struct

from server.artifact.checkpoint.lineage import FILE
from server.config import SETTINGS
from server.errors import ArtifactError, ConfigError
from server.skills import api_keys
from server.skills.skill import Skill
from server.storage.files import write_atomically

SYSTEM = "You are a helpful assistant. Answer in one or two short sentences."


class FirstServer(Struct, frozen=True):
    """A server of one model with one skill, whose files lie in `folder`."""

    folder: Path
    model: Path
    skill: str = "help"
    title: str = "Chat"
    system: str = SYSTEM
    origins: tuple[str, ...] = ()
    """Origins of the pages that may embed the skill, beside the page of the server itself."""
    port: int = 8000
    admin_port: int = 9464
    page_port: int = 8001

    @property
    def config(self) -> Path:
        """The server's settings."""
        return self.folder / SETTINGS

    @property
    def key_file(self) -> Path:
        """The file of API keys."""
        return self.folder / "keys.json"

    @property
    def skill_file(self) -> Path:
        """The skill's file."""
        return self.folder / "skills" / f"{self.skill}.toml"

    def write(self) -> str:
        """Write the files and return the key, which only its holder has from then on.

        Raises ConfigError if a file exists already or a value is not allowed, and ArtifactError if the model cannot
        chat; nothing is written then.
        """
        self.refuse_existing()
        check_model(self.model)
        try:
            self.skill_file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.skill_file, self._skill().encode())
            Skill.read(self.skill_file)
            key, _ = api_keys.create(self.key_file, [self.skill], "made with the server's first settings")
            write_atomically(self.config, self._settings().encode())
        except OSError as error:
            raise ConfigError(f"{error.filename or self.folder} cannot be written: {error.strerror}") from None
        except ConfigError:
            self.skill_file.unlink(missing_ok=True)
            with suppress(OSError):  # only a folder that is empty
                self.skill_file.parent.rmdir()
            raise
        return key

    def refuse_existing(self) -> None:
        """Raise ConfigError if one of the files exists."""
        for path in (self.config, self.key_file, self.skill_file):
            if path.exists():
                raise ConfigError(f"{path} exists already: choose another folder, or start it by `{self.start}`")

    @property
    def start(self) -> str:
        """The command that serves it."""
        return f"secateur serve {self.config}"

    def curl(self, key: str) -> str:
        """A command that asks the skill a question."""
        body = json.dumps({"model": self.skill, "messages": [{"role": "user", "content": "Hello!"}]})
        return (
            f"curl http://127.0.0.1:{self.port}/v1/chat/completions -H 'Authorization: Bearer {key}' "
            f"-H 'Content-Type: application/json' -d '{body}'"
        )

    @property
    def line(self) -> str:
        """The line that puts the chat on a page."""
        return f'<script async src="http://127.0.0.1:{self.port}/widget.js" data-skill="{self.skill}"></script>'

    def _settings(self) -> str:
        """The text of server.toml; its paths are absolute, so that it can be started from anywhere."""
        folder = self.folder.resolve()
        return _toml(
            {
                "model": str(self.model.resolve()),
                "skills": str(folder / "skills"),
                "keys": str(self.key_file.resolve()),
                "ledger": str(folder / "usage.sqlite3"),
                "port": self.port,
                "admin_port": self.admin_port,
                "page_port": self.page_port,
            },
            "What `secateur serve` reads; with --check it names mistakes. All settings: the docs' page `server.toml`",
        )

    def _skill(self) -> str:
        """The text of the skill's file."""
        pages = [f"http://{host}:{self.page_port}" for host in ("127.0.0.1", "localhost")]
        return _toml(
            {
                "name": self.skill,
                "title": self.title,
                "origins": [*self.origins, *pages],
                "max_tokens": 256,
                "system": self.system,
            },
            "A skill. Small models follow `examples` better than instructions. Keys: the docs' page `A skill's file`",
        )


def check_model(path: Path, template: Path | None = None) -> None:
    """Raise ArtifactError unless `path` is an artifact that can serve a chat, by `template` if it has none."""
    from server.models import preflight  # late: llguidance and tiktoken take a moment

    if not (path / FILE).exists():
        raise ArtifactError(f"{path} is not an artifact: `secateur import {path}` makes one of a model")
    preflight.check_model(path, template)


def _toml(values: dict[str, Any], comment: str) -> str:
    """A TOML file of strings, integers and lists of strings, whose JSON form is TOML too."""
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]
    return "\n".join([f"# {comment}", *lines, ""])
