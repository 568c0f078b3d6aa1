"""Bodies as they arrive: whole, compressed, cut off, too large."""

import gzip
import zlib
from collections.abc import Iterator

import pytest

from server.errors import InvalidRequest, TooLarge, Unsupported
from server.web.http.requests import BodyBuffer

TEXT = b'{"model": "help"}' * 100


def parts(body: bytes, size: int) -> Iterator[bytes]:
    return (body[start : start + size] for start in range(0, len(body), size))


def gathered(body: bytes, encoding: str = "", *, limit: int = 10_000, size: int = 7) -> bytes:
    buffer = BodyBuffer(encoding, limit)
    for part in parts(body, size):
        buffer.add(part)
    return buffer.finish()


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize("encoding", ["gzip", " GZip", "x-gzip"])
def test_gzip_is_decompressed(encoding: str, size: int) -> None:
    assert gathered(gzip.compress(TEXT), encoding, size=size) == TEXT
    assert gathered(gzip.compress(b""), encoding, size=size) == b""


@pytest.mark.parametrize("encoding", ["", "identity"])
def test_other_bodies_are_taken_as_they_are(encoding: str) -> None:
    assert gathered(TEXT, encoding) == TEXT
    assert gathered(gzip.compress(TEXT), encoding) == gzip.compress(TEXT)


def test_the_limit_is_of_the_content() -> None:
    for body, encoding in ((TEXT, ""), (gzip.compress(TEXT), "gzip")):
        assert gathered(body, encoding, limit=len(TEXT)) == TEXT
        with pytest.raises(TooLarge, match=f"larger than {len(TEXT) - 1} bytes"):
            gathered(body, encoding, limit=len(TEXT) - 1)


def test_a_bomb_is_not_unpacked() -> None:
    """A gigabyte in a megabyte: never more than the limit is held."""
    packer = zlib.compressobj(wbits=31)
    bomb = b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(64)), packer.flush()])
    buffer = BodyBuffer("gzip", 1000)
    for part in parts(bomb, 4096):
        buffer.add(part)
    assert len(buffer._content) <= 1000
    with pytest.raises(TooLarge):
        buffer.finish()


@pytest.mark.parametrize(
    "damaged",
    [TEXT, gzip.compress(TEXT)[:-1], gzip.compress(TEXT) + b"x", b"", zlib.compress(TEXT), b"\x1f\x8b"],
    ids=["plain", "cut", "longer", "empty", "zlib", "begun"],  # gzip writes the time, and workers compare names
)
def test_damaged_gzip_is_refused(damaged: bytes) -> None:
    with pytest.raises(InvalidRequest, match="gzip"):
        gathered(damaged, "gzip")


@pytest.mark.parametrize("encoding", ["br", "zstd", "deflate", "gzip, br", "aes128gcm"])
def test_other_encodings_are_refused(encoding: str) -> None:
    with pytest.raises(Unsupported, match="send gzip, or none"):
        BodyBuffer(encoding, 1000)
