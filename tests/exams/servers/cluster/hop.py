"""What skills in front of vLLM cost: seconds of a reply and megabytes, beside vLLM asked directly."""

import json
import statistics
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.exams.row import Row
from tests.exams.servers.cluster.real_vllm import NAME, Vllm

ROUNDS, TOKENS = 9, 32
SILENCE = 300.0


def hop(server: str, key: str, process: int, vllm: Vllm) -> Iterator[Row]:
    """Replies in turns, both ways; and the memory of both. Figures, not bounds: other work may run."""
    ways = {f"{vllm.url}/v1": (NAME, ""), server: ("help", key)}
    found: dict[str, list[tuple[float, float]]] = {url: [] for url in ways}
    for number in range(ROUNDS + 1):
        for url, (model, secret) in ways.items():
            found[url].append(timed(url, model, secret, f"Tell me about the number {number}."))
    for place, name in enumerate(("TTFT", "a reply of 32 tokens")):
        direct, through = ([1000 * pair[place] for pair in pairs[1:]] for pairs in found.values())
        gap = statistics.median(more - less for less, more in zip(direct, through, strict=True))
        shown = f"{statistics.median(direct):.0f} ms alone, {statistics.median(through):.0f} behind skills, {gap:+.0f}"
        yield Row(f"{name}, medians of {ROUNDS} in turns", shown, "told", True)
    shown = f"{resident([process])} MB beside vLLM's {resident(vllm.processes)} MB"
    yield Row("memory of the server with skills", shown, "told", True)


def timed(url: str, model: str, key: str, text: str) -> tuple[float, float]:
    """Seconds to the first text of a streamed reply, and to its end."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], "stream": True, "temperature": 0,
            "max_tokens": TOKENS, "ignore_eos": True}  # fmt: skip
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    request = urllib.request.Request(f"{url}/chat/completions", json.dumps(body).encode(), headers)
    begun, first = time.monotonic(), 0.0
    with urllib.request.urlopen(request, timeout=SILENCE) as response:
        for line in response:
            if line.startswith(b"data: {") and any(c["delta"].get("content") for c in json.loads(line[6:])["choices"]):
                first = first or time.monotonic() - begun
    return first, time.monotonic() - begun


def resident(processes: list[int]) -> int:
    """Resident megabytes of the processes together; pages that they share count for each."""
    kilobytes = 0
    for process in processes:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        kilobytes += sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
    return kilobytes // 1000
