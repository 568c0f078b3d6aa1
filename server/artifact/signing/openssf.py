"""Signs with OpenSSF model-signing (extra `signing`, imported only here)."""

from pathlib import Path

from server.artifact.checkpoint.lineage import SIGNATURE
from server.errors import SignatureError

MISSING = "an elliptic curve's key needs `pip install 'secateur[signing]'`; an Ed25519 key needs nothing"


def installed() -> bool:
    """Whether the extra is completely installed."""
    try:
        import model_signing  # noqa: F401
    except ImportError:  # pyopenssl may be missing: model-signing does not declare it
        return False
    return True


def seal(directory: Path, key: Path, folder: Path) -> bytes:
    """The signed bundle of the artifact in `directory`, made in `folder`; raises SignatureError without the extra."""
    if not installed():
        raise SignatureError(MISSING)
    from model_signing import hashing, signing

    ignored = hashing.Config()
    ignored.set_ignored_paths(paths=[directory / SIGNATURE], ignore_git_paths=False)
    signer = signing.Config()
    target = folder / SIGNATURE
    signer.use_elliptic_key_signer(private_key=key).set_hashing_config(ignored).sign(directory, target)
    return target.read_bytes()
