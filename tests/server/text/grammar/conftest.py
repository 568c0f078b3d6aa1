"""Tokenizers whose grammars are tested: one token a byte, and a BPE with tokens of several characters."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from server.text import tokenizer_files
from server.text.grammar.compiler import GrammarCompiler
from server.text.grammar.grammar import Grammar
from server.text.grammar.matcher import CompiledGrammar
from tests.support.harness import END, tokenizer

TEXTS = (
    '{"name": "Ann", "age": 31, "tags": ["a", "b"]}',
    '{"city": "Bern", "open": true, "cost": 12.5, "note": null}',
    "aaa aaa abab abab cabc the name is the name",
)


@pytest.fixture(scope="session")
def byte_compiler(tmp_path_factory: pytest.TempPathFactory) -> GrammarCompiler:
    folder = tmp_path_factory.mktemp("bytes")
    tokenizer(folder)
    return GrammarCompiler(tokenizer_files.read(folder))


@pytest.fixture(scope="session")
def bpe_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bpe")
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(TEXTS * 9, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    made.add_special_tokens([AddedToken(END, special=True)])
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}))
    return folder


@pytest.fixture(scope="session")
def compiler(bpe_folder: Path) -> GrammarCompiler:
    return GrammarCompiler(tokenizer_files.read(bpe_folder))


@pytest.fixture(scope="session")
def library(bpe_folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(bpe_folder / "tokenizer.json"))


@pytest.fixture(scope="session")
def compiled(compiler: GrammarCompiler) -> Callable[[Grammar], CompiledGrammar]:
    return lambda grammar: asyncio.run(compiler.compile(grammar))
