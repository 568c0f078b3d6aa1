"""One thread for tensors: these tests are many tiny models, which a second thread only slows."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)
