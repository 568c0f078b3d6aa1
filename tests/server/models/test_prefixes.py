"""Skills' own prefixes on disk: the same text with and without them, warm after a restart, never a wrong file."""

import asyncio
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import load_file, save_file

from server.artifact.checkpoint.reader import Artifact
from server.config import Config
from server.engine.blocks import BLOCK, Blocks
from server.engine.engine import Engine
from server.engine.sequence import Sampling
from server.models.loading import load_engine
from server.models.prefixes import OF_A_SKILL, SUFFIX, Bytes, Prefix, PrefixFiles
from tests.support.tiny_llama import tiny_llama

PREFIX = list(range(7, 7 + 3 * BLOCK + 5))
GREEDY = Sampling(temperature=0, max_tokens=12)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("prefixes") / "tiny")


def engine(model: Path, folder: Path | None, **more: Any) -> Engine:
    settings = {"model": str(model), "skills": model, "ledger": "none", "slots": 2, "context": 256, "threads": 1}
    config = Config(**{**settings, "prefix_cache": folder, "runner": "native", **more})
    made, _ = load_engine(config, Artifact.open(model))
    assert isinstance(made, Engine)
    return made


def asked(
    made: Engine, *questions: list[int], skill: str = "help", prefix: list[int] = PREFIX
) -> list[tuple[list[int], int]]:
    """Ids and cached tokens of the reply to each question, on an engine that is started and stopped."""

    async def run() -> list[tuple[list[int], int]]:
        found = []
        for question in questions:
            stream = made.submit(prefix + question, GREEDY, skill=skill, shared_prefix=len(prefix), cache_salt="caller")
            ids = [token.id async for token in stream]
            found.append((ids, stream.cached))
        return found

    made.start()
    try:
        return asyncio.run(run())
    finally:
        made.stop()


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"))


@pytest.mark.parametrize("key_bits", [16, 8])
def test_the_first_question_after_a_restart_is_warm_and_its_text_the_same(
    model: Path, tmp_path: Path, key_bits: int
) -> None:
    plain = asked(engine(model, None, key_bits=key_bits), [100, 101], [103])
    assert [cached for _, cached in plain] == [0, 3 * BLOCK]
    first = asked(engine(model, tmp_path, key_bits=key_bits), [100, 101], [103])
    assert first == plain
    assert len(files(tmp_path)) == 1
    again = asked(engine(model, tmp_path, key_bits=key_bits), [100, 101])
    assert again == [(plain[0][0], 3 * BLOCK)]
    assert tmp_path.stat().st_mode & 0o77 == 0 or files(tmp_path)[0].stat().st_mode & 0o77 == 0


def test_another_skill_model_or_layout_is_cold(model: Path, tmp_path: Path) -> None:
    asked(engine(model, tmp_path), [100])
    assert asked(engine(model, tmp_path), [100], skill="other")[0][1] == 0
    assert asked(engine(model, tmp_path, key_bits=8), [100])[0][1] == 0
    other = tiny_llama(tmp_path / "other" / "tiny", seed=1)
    assert asked(engine(other, tmp_path), [100])[0][1] == 0
    assert len(files(tmp_path)) <= 4


def damaged(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def foreign(path: Path) -> None:
    path.write_text("not a prefix")


def renamed(path: Path) -> None:
    """Another prefix's contents under this name."""
    tensors = load_file(path)
    tensors["hashes"] = numpy.flip(tensors["hashes"], 0).copy()
    save_file(tensors, path, {"kind": "secateur prefix 1"})


@pytest.mark.parametrize("spoil", [damaged, cut, foreign, renamed])
def test_a_spoilt_file_is_never_served(
    model: Path, tmp_path: Path, spoil: Any, caplog: pytest.LogCaptureFixture
) -> None:
    [(text, _)] = asked(engine(model, tmp_path), [100])
    [path] = files(tmp_path)
    spoil(path)
    with caplog.at_level(logging.WARNING):
        assert asked(engine(model, tmp_path), [100]) == [(text, 0)]
    assert f"{path} is not used: " in caplog.text


def test_the_prefixes_of_older_revisions_and_what_exceeds_the_bound_are_deleted(model: Path, tmp_path: Path) -> None:
    for revision in range(OF_A_SKILL + 2):
        asked(engine(model, tmp_path), [100], prefix=[150 + revision, *PREFIX])
    assert len(files(tmp_path)) == OF_A_SKILL
    asked(engine(model, tmp_path), [100], skill="other")
    assert len(files(tmp_path)) == OF_A_SKILL + 1
    made = engine(model, tmp_path)
    assert isinstance(made.prefixes, PrefixFiles)
    made.prefixes._most_bytes = files(tmp_path)[0].stat().st_size + 10
    asked(made, [100], skill="third")
    assert len(files(tmp_path)) == 1


def test_a_folder_that_cannot_be_written_is_a_warning(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    asked(engine(model, tmp_path / "file" / "below"), [100])
    assert "The prefix of the skill 'help' is not kept in" in caplog.text
    shutil.rmtree(tmp_path / "below", ignore_errors=True)


class Store:
    """A cache of bytes."""

    layout = "test"
    block_bytes = 16

    def __init__(self, count: int) -> None:
        self.blocks = numpy.zeros((count, self.block_bytes), numpy.uint8)

    def read_blocks(self, blocks: Sequence[int]) -> Bytes:
        return self.blocks[list(blocks)]

    def write_blocks(self, blocks: Sequence[int], values: Bytes) -> None:
        self.blocks[list(blocks)] = values


def test_every_block_that_can_be_found_has_its_values_where_room_ends_within_a_prefix(tmp_path: Path) -> None:
    store = Store(8)
    kept = PrefixFiles(tmp_path, store, "m", most_bytes=1 << 20)
    prefixes: list[Prefix] = []
    for number in (1, 5):
        hashes = tuple(bytes([number + block]) * 32 for block in range(4))
        values = numpy.stack([numpy.full(store.block_bytes, digest[0], numpy.uint8) for digest in hashes])
        prefixes.append(Prefix(f"skill {number}", hashes, values))
        kept._write(prefixes[-1])
    blocks = Blocks(8, 6)
    total = kept.restore(blocks)
    kept.close()
    found = {digest: place for one in prefixes for digest in one.hashes if (place := blocks.find(digest)) is not None}
    assert len(found) == 6
    for digest, place in found.items():
        assert store.read_blocks([place]).tolist() == [[digest[0]] * store.block_bytes]
    assert total == 6
