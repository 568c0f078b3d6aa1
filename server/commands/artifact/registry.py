"""`secateur registry`: model versions and their promotion; each action is atomic, or refused in one sentence."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from server.artifact.registry import results, rules, show
from server.artifact.registry.store import DEFAULT, Kind, Registry
from server.artifact.signing.keys import Signers, read_private
from server.command_line import Parser, print_json
from server.errors import RegistryError

VERSION = "NAME@NUMBER, NAME@candidate or NAME@production"
POSITIONALS = {"name": "a model's name", "version": VERSION, "a": VERSION, "b": VERSION}


def main(argv: Sequence[str]) -> int:
    """Run one action; returns 0. Raises RegistryError, ArtifactError or SignatureError, changing nothing."""
    arguments = parser().parse_args(argv)
    adds = arguments.run is _add
    if adds:  # examined first, so that a refused artifact creates no registry
        key = read_private(arguments.key) if arguments.key else None
        arguments.candidate = rules.examine(arguments.artifact, arguments.results, key)
    with Registry.open(arguments.registry, create=adds) as registry:
        arguments.run(registry, arguments)
    return 0


def parser() -> argparse.ArgumentParser:
    """The actions and their options."""
    top = Parser(prog="secateur registry", description="Models, versions, approvals and promotions.")
    top.add_argument(
        "--registry", default=DEFAULT, metavar="URL", help=f"a file or postgresql://... (default: {DEFAULT})"
    )
    actions = top.add_subparsers(required=True, metavar="ACTION")

    def action(name: str, run: object, *words: str) -> argparse.ArgumentParser:
        made = actions.add_parser(name, help=run.__doc__, description=run.__doc__)
        for word in words:
            made.add_argument(word, metavar=word.upper(), help=POSITIONALS[word])
        made.set_defaults(run=run)
        return made

    added = action("add", _add, "name")
    added.add_argument("artifact", type=Path, metavar="ARTIFACT", help="an artifact's directory")
    added.add_argument(
        "--results", type=Path, nargs="+", default=[], metavar="FILE", help="result files of `secateur evaluate`"
    )
    added.add_argument(
        "--key",
        type=Path,
        metavar="PEM",
        help="the private key that signs these results (default: their FILE.sig)",
    )
    listing = action("list", _list)
    _take_signers(listing, "also check the signature of each result")
    listing.add_argument("--json", action="store_true", help="as a JSON array")
    action("show", _show, "version")
    action("diff", _diff, "a", "b")
    _add_signed_actions(action)
    verified = action("verify", _verify, "version")
    _take_signers(verified, "also check every signature, and name who approved")
    exported = action("export", _export, "name")
    exported.add_argument("--mlflow", required=True, metavar="URL", help="an MLflow tracking server")
    _take_signers(exported, "also check the signature of each result, and tag it")
    return top


def _add_signed_actions(action: Callable[..., argparse.ArgumentParser]) -> None:
    """`approve`, `promote` and `rollback`, which need a private key."""
    approved = action("approve", _approve, "version")
    approved.add_argument("--key", type=Path, required=True, metavar="PEM", help="the private key that signs")
    approved.add_argument("--reason", required=True, help="a sentence that is signed with the approval")
    approved.add_argument("--override", action="store_true", help="allow promotion without passed gates")
    for name, run, word in (("promote", _promote, "version"), ("rollback", _rollback, "name")):
        moved = action(name, run, word)
        moved.add_argument("--key", type=Path, required=True, metavar="PEM", help="the private key that signs the move")
        _take_signers(moved, "check all that a server with these signers will check")


def _take_signers(action: argparse.ArgumentParser, effect: str) -> None:
    action.add_argument("--signers", type=Path, metavar="FILE", help=effect)


def _add(registry: Registry, arguments: argparse.Namespace) -> None:
    """Add an artifact as the candidate, with its gate results."""
    found: rules.Candidate = arguments.candidate
    version = registry.add(arguments.name, found.path, found.lineage, found.gates)
    print(f"{version.name} {version.address}: the candidate")


def _list(registry: Registry, arguments: argparse.Namespace) -> None:
    """List every version of every model, and with --signers whether the signature of each result checks."""
    if arguments.json:
        found = list(show.listed(registry, _signers(arguments)))
        print_json(found)
        return
    print("\n".join(show.overview(registry, _signers(arguments))) or "the registry is empty")


def _show(registry: Registry, arguments: argparse.Namespace) -> None:
    """Show one version: NAME@NUMBER, NAME@candidate or NAME@production."""
    print("\n".join(show.details(registry, registry.resolve(arguments.version))))


def _diff(registry: Registry, arguments: argparse.Namespace) -> None:
    """Show how two versions differ."""
    left, right = registry.resolve(arguments.a), registry.resolve(arguments.b)
    print("\n".join([f"{left.name} | {right.name}", *show.difference(left, right)]))


def _approve(registry: Registry, arguments: argparse.Namespace) -> None:
    """Sign an approval of a version, or an override of its gates; neither can be withdrawn."""
    version = registry.resolve(arguments.version)
    kind: Kind = "override" if arguments.override else "approval"
    made = rules.approve(registry, version, kind, arguments.reason, read_private(arguments.key))
    print(f"{version.name}: {kind} by the key {made.signer[:16]}")


def _promote(registry: Registry, arguments: argparse.Namespace) -> None:
    """Put a version into production by a signed move; needs passed gates or a signed override."""
    version = registry.resolve(arguments.version)
    reason = rules.promote(registry, version, read_private(arguments.key), _signers(arguments))
    print(f"{version.name} is in production ({reason})")


def _rollback(registry: Registry, arguments: argparse.Namespace) -> None:
    """Return the previous production version to production by a signed move."""
    version = rules.rollback(registry, arguments.name, read_private(arguments.key), _signers(arguments))
    print(f"{version.name} is in production again")


def _verify(registry: Registry, arguments: argparse.Namespace) -> None:
    """Verify a version's files and record, and with --signers its results, approvals and place in production."""
    version, signers = registry.resolve(arguments.version), _signers(arguments)
    if wrong := rules.faults(registry, version, signers):
        raise RegistryError("; ".join(wrong))
    signed = rules.verify(version, signers)
    said = [f"{version.name} is whole"]
    if signed and signers:
        said.append(f"signed by {signed.name}")
        said += [f"{one.kind} by {rules.signer(version, one, signers)}" for one in version.approvals]
        said += [f"the result of {task} is not signed and does not count" for task in results.unsigned(version)]
    print("; ".join(said))


def _export(registry: Registry, arguments: argparse.Namespace) -> None:
    """Export every version of a model to an MLflow registry."""
    from server.artifact.registry.mlflow_export import export  # late: imports MLflow

    count = export(registry, arguments.name, arguments.mlflow, _signers(arguments))
    print(f"{arguments.name}: {count} versions are in {arguments.mlflow}")


def _signers(arguments: argparse.Namespace) -> Signers | None:
    return Signers.read(arguments.signers) if arguments.signers else None
