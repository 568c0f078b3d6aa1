"""llama.cpp's own server on a GGUF file, asked over HTTP."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import torch
import xllamacpp
from torch import Tensor


class LlamaCpp:
    """One loaded model."""

    def __init__(self, url: str, words: int) -> None:
        self._url, self._words = url, words

    def log_probabilities(self, ids: Sequence[int]) -> Tensor:
        """log p of every token after `ids` [words], from the logits as they are before any sampling."""
        whole = self.encode("a")[0]  # half a character would be held back, with its probabilities
        asked = {"prompt": list(ids), "n_predict": 1, "n_probs": self._words, "logit_bias": [[whole, 1000]]}
        found = self._post("completion", asked | {"cache_prompt": False})["completion_probabilities"][0]["top_logprobs"]
        result = torch.full((self._words,), float("nan"))
        for entry in found:
            result[entry["id"]] = entry["logprob"]
        return result

    def greedy(self, ids: Sequence[int], tokens: int) -> list[int]:
        """The most likely ids after `ids`."""
        asked = {"prompt": list(ids), "n_predict": tokens, "temperature": 0, "top_k": 1, "ignore_eos": True}
        found: list[int] = self._post("completion", asked | {"return_tokens": True})["tokens"]
        return found

    def encode(self, text: str) -> list[int]:
        """The ids of a text in which special tokens are text."""
        asked = {"content": text, "add_special": False, "parse_special": False}
        found: list[int] = self._post("tokenize", asked)["tokens"]
        return found

    def chat(self, messages: Sequence[dict[str, str]]) -> str:
        """A conversation as the file's own template writes it."""
        return str(self._post("apply-template", {"messages": list(messages)})["prompt"])

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = Request(f"{self._url}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urlopen(request, timeout=60) as response:
            answer: dict[str, Any] = json.load(response)
        return answer


@contextmanager
def loaded(folder: Path, words: int) -> Iterator[LlamaCpp]:
    """The one GGUF file in `folder`, served on a free port."""
    settings = xllamacpp.CommonParams()
    settings.model.path = str(next(folder.glob("*.gguf")))
    settings.n_ctx, settings.n_parallel, settings.port = 128, 1, 0
    settings.cpuparams.n_threads = 1
    settings.warmup, settings.use_jinja, settings.verbosity = False, True, -1
    server = xllamacpp.Server(settings)
    yield LlamaCpp(server.listening_address, words)
    del server
