"""A skill's system prompt: a Jinja template in the sandbox of chat templates.

Its variables are the skill's `title`, `date` and `weekday` in UTC, and `person`, the verified visitor or empty.
"""

from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path

import jinja2

from server.errors import ConfigError
from server.text.budget import Budget, with_budget
from server.text.sandbox import Sandbox

MARKS = ("{{", "{%", "{#")
DAYS = 7  # a template may have a branch for each weekday
LONGEST = 100_000  # characters


def read(path: Path, file: str) -> str:
    """The text of `file`, in the folder of the skill's file `path` or below it; raises ConfigError."""
    found = path.parent / file
    # Models recite their prompt when asked: a link or path must not turn a secret file into one.
    if not found.resolve().is_relative_to(path.parent.resolve()):
        raise ConfigError(f"{path}: `$.system_file` leads out of the folder {path.parent}; put the prompt there")
    try:
        if not found.is_file():  # reading a pipe would block
            raise OSError
        with found.open(encoding="utf-8") as opened:
            return opened.read(LONGEST + 1)
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"{path}: {found} at `$.system_file` cannot be read as text") from None


def check(where: str, source: str) -> None:
    """Render for every weekday, with and without a visitor; raises ConfigError, which begins with `where`."""
    if len(source) > LONGEST:
        raise ConfigError(f"{where}: the system prompt has more than {LONGEST} characters")
    try:
        for person, days in product(("", "person"), range(DAYS)):
            render(source, title="title", person=person, now=datetime.now(UTC) + timedelta(days))
    except jinja2.TemplateError as error:
        raise ConfigError(
            f"{where}: the system prompt is not a template ({error}); its variables are title, date, weekday and person"
        ) from None


def render(source: str, *, title: str, person: str, now: datetime | None = None) -> str:
    """The system prompt of a conversation that begins `now`; raises jinja2.TemplateError."""
    if not any(mark in source for mark in MARKS):
        return source
    now = now or datetime.now(UTC)
    environment = Sandbox(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    template = environment.from_string(source)
    try:
        known = {"title": title, "person": person, "date": f"{now:%Y-%m-%d}", "weekday": f"{now:%A}"}
        text = template.render(with_budget(known, Budget()))
    except jinja2.TemplateError:
        raise
    except Exception as error:  # templates can raise anything
        raise jinja2.TemplateError(f"{type(error).__name__}: {error}") from None
    if len(text) > LONGEST:
        raise jinja2.TemplateError(f"it writes more than {LONGEST} characters")
    return text
