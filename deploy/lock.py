"""`make lock`: pins every package of the product, and of the build of its wheel, with hashes: deploy/requirements.lock.

torch is left out with what its CUDA builds bring: which of its builds fits depends on the machine, so it is installed
by the range in pyproject.toml after the locked packages.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "deploy" / "requirements.lock"
UNLOCKED = re.compile(r"(torch|triton|nvidia-[\w-]+|cuda-[\w-]+)==")
HEADER = "# Written by `make lock`; torch and its CUDA packages are chosen by the machine that installs.\n"


def main() -> int:
    """Resolve for every platform and Python that pyproject.toml allows; the newest release of each package wins."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    build = "\n".join([*project["build-system"]["requires"], "cmake>=3.20", "ninja"])
    options = ["--universal", "--generate-hashes", "--no-header", "--no-annotate", "--upgrade", "--quiet"]
    extras = [option for extra in ("postgres", "redis", "otel", "knowledge") for option in ("--extra", extra)]
    command = ["uv", "pip", "compile", *options, *extras, "--python-version", "3.11", "pyproject.toml", "-"]
    resolved = subprocess.run(command, cwd=ROOT, input=build, capture_output=True, text=True)
    if resolved.returncode:
        print(resolved.stderr, file=sys.stderr)
        return 1
    pins = re.split(r"^(?=\w)", resolved.stdout, flags=re.MULTILINE)
    LOCK.write_text(HEADER + "".join(pin for pin in pins if pin and not UNLOCKED.match(pin)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
