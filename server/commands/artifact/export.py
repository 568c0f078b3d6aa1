"""`secateur export ARTIFACT --to FORM --output DIR`: writes another program's format, completely or not at all."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from server.artifact.signing import envelope
from server.artifact.signing.keys import Signers
from server.command_line import Parser
from server.errors import ExportError
from server.storage.digests import FileDigests
from server.storage.folders import fresh

if TYPE_CHECKING:
    from server.artifact.checkpoint.reader import Artifact
    from server.artifact.export.link import Made

FORMS = ("hf", "compressed-tensors", "gguf")
UNITS = {"MB": 10**6, "GB": 10**9}


def main(argv: Sequence[str]) -> int:
    """Write one export; returns 0. Raises ExportError, ArtifactError or SignatureError, leaving no files behind."""
    arguments, digests = parser().parse_args(argv), FileDigests()
    if arguments.signers:
        envelope.verify(arguments.artifact, Signers.read(arguments.signers), digests)
    from server.artifact.checkpoint.reader import Artifact  # late: torch takes seconds
    from server.artifact.export import link

    target: Path = arguments.output.absolute()
    with fresh(target, ExportError) as folder:
        artifact = Artifact.open(arguments.artifact, digests=digests)
        artifact.check_last_link()
        made = write(artifact, folder, arguments.to, arguments.shard_size)
        link.write(folder, artifact, made)
    print("\n".join(made.notes))
    print(f"\n{target}: {arguments.to}, {made.parameters:,} parameters, every weight as the artifact has it")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = Parser(prog="secateur export", description="Write an artifact in another program's format.")
    options.add_argument("artifact", type=Path, help="an artifact's directory")
    options.add_argument(
        "--to",
        choices=FORMS,
        required=True,
        help="hf: dense safetensors; compressed-tensors: a quantised model's integers, for transformers and vLLM; "
        "gguf: for llama.cpp",
    )
    options.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="a directory that does not exist yet"
    )
    options.add_argument(
        "--shard-size",
        type=_size,
        default="5GB",
        metavar="SIZE",
        help="the largest safetensors file, as 500MB (default: 5GB)",
    )
    options.add_argument(
        "--signers",
        type=Path,
        metavar="FILE",
        help="refuse unless one of these signed the artifact (default: export without a check)",
    )
    return options


def write(artifact: "Artifact", folder: Path, form: str, limit: int) -> "Made":
    """Write the files of `form` into `folder`; returns what was made, with notes to print."""
    from server.artifact.export import compressed, gguf_file, huggingface, link, notes

    start = monotonic()
    said: list[str] = []
    options: dict[str, object] = {"to": form}
    if form == "hf":
        parameters, size = huggingface.write(artifact, folder, limit)
    elif form == "compressed-tensors":
        parameters, size, said = compressed.write(artifact, folder, limit)
    else:
        parameters, size, said = gguf_file.write(artifact, folder)
    said = [*notes.of_layouts(artifact, form, size), *said]
    return link.Made(options, parameters, round(monotonic() - start, 1), said)


def _size(text: str) -> int:
    """Bytes of a size such as 500MB or 5GB."""
    found = re.fullmatch(r"(\d+)(MB|GB)", text)
    if found is None or not int(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write a whole number of MB or GB, as 500MB or 5GB")
    return int(found[1]) * UNITS[found[2]]
