"""`python -m tests.exams.servers.real_server FOLDER model=DIR [tokens=N] [SETTING=VALUE ...]`: `secateur serve` itself.

One skill, `help`, whose replies have at most `tokens` tokens; FOLDER gets its files.
"""

import json
import sys
from pathlib import Path

from server.commands.serve import main as serve

SKILL = 'name = "help"\nsystem = "You tell long stories."\nmax_tokens = {tokens}\ntemperature = 0.0\n'


def main(folder: Path, settings: dict[str, str]) -> None:
    """Write the files of a configuration and serve it until a signal."""
    folder.mkdir(parents=True, exist_ok=True)
    skill, config = folder / "help.toml", folder / "server.toml"
    skill.write_text(SKILL.format(tokens=settings.pop("tokens", "64")))
    named = {"feedback": str(folder / "feedback.sqlite3"), "skills": str(skill), "port": "0", "admin_port": "0"}
    values = {name: value if value.isdigit() else json.dumps(value) for name, value in {**named, **settings}.items()}
    config.write_text("\n".join(f"{name} = {value}" for name, value in values.items()))
    serve([str(config)])


if __name__ == "__main__":
    main(Path(sys.argv[1]), dict(pair.split("=", 1) for pair in sys.argv[2:]))
