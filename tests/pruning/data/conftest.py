"""A base artifact with a byte-level tokenizer, and its encoder."""

from pathlib import Path

import pytest

from pruning.data.encoder import Encoder
from pruning.stages.inputs import base_artifact
from server.artifact.checkpoint.reader import Artifact


@pytest.fixture(scope="module")
def artifact(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return base_artifact(str(model), tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def encoder(artifact: Artifact) -> Encoder:
    return Encoder(artifact)
