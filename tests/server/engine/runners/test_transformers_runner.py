"""The runner against the models' own forward passes: tiny random models, mixed chunks and decode rows, reused slots."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from server.engine.batch import Batch, Chunk
from server.engine.runners.transformers_runner import TransformersRunner, choose_dtype, load
from server.engine.sampling.reference import sample
from server.engine.scheduling.scheduler import Scheduler
from server.engine.sequence import Sampling, Sequence
from server.errors import ArtifactError, ConfigError
from tests.server.engine.native.tiny import SHAPE

MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, tied": {"tie_word_embeddings": True},
    "llama, llama3 rope": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 7},
    "gemma": {},
    "gemma3_text": {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": {"partial_rotary_factor": 0.5},
    "olmo2": {},
}


def tiny(name: str, **options: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    kind = name.split(",")[0]
    config = CONFIG_MAPPING[kind].from_dict({"model_type": kind, **SHAPE, **MODELS.get(name, {}), **options})
    factory: Any = AutoModelForCausalLM
    model = factory.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    assert isinstance(model, PreTrainedModel)
    return model


def own_logits(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """The model's own logits [ids, vocabulary] of a whole text, with its own attention and no cache."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([ids]), use_cache=False).logits[0]
    return logits


@pytest.mark.parametrize("name", MODELS)
def test_mixed_batches_give_the_logits_of_the_whole_text(name: str) -> None:
    model = tiny(name)
    runner = TransformersRunner(model, slots=4, context=40)
    generator = random.Random(0)
    texts = [[generator.randrange(96) for _ in range(length)] for length in (3, 11, 24, 40)]
    done = [0] * len(texts)
    sequences = [Sequence("", tuple(text), Sampling()) for text in texts]
    seen: dict[tuple[int, int], torch.Tensor] = {}
    while any(count < len(text) for count, text in zip(done, texts, strict=True)):
        chunks = []
        for slot, text in enumerate(texts):
            count = min(generator.choice((0, 1, 1, 5)), len(text) - done[slot])
            if count:
                ids = tuple(text[done[slot] : done[slot] + count])
                chunks.append(Chunk(sequences[slot], slot, done[slot], ids, generator.random() < 0.7))
                done[slot] += count
        if chunks:
            wanted = [chunk for chunk in chunks if chunk.wants_logits]
            for chunk, row in zip(wanted, runner.forward(Batch(tuple(chunks))), strict=True):
                seen[chunk.slot, chunk.end - 1] = row
    expected = [own_logits(model, text) for text in texts]
    assert len(seen) > 20
    for (slot, position), row in seen.items():
        torch.testing.assert_close(row, expected[slot][position], rtol=1e-4, atol=1e-4)


def serve(runner: TransformersRunner, prompts: list[tuple[int, ...]], batch_tokens: int) -> list[Sequence]:
    """Greedy replies to all prompts, as the engine would make them."""
    scheduler = Scheduler(slots=4, context=80, batch_tokens=batch_tokens, max_waiting=99)
    sequences = [Sequence("one", prompt, Sampling(temperature=0, max_tokens=12)) for prompt in prompts]
    for sequence in sequences:
        scheduler.add(sequence)
    while not scheduler.idle:
        batch = scheduler.schedule()
        scheduler.commit(batch, sample(batch, runner.forward(batch)))
    return sequences


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3_text"])
def test_greedy_replies_equal_generate_also_when_prefixes_are_reused(name: str) -> None:
    model = tiny(name)
    system = tuple(range(20, 60))
    prompts = [system + tuple(range(start, start + 1 + start % 5)) for start in range(60, 69)]
    model.set_attn_implementation("eager")
    expected = [
        model.generate(  # type: ignore[operator]
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=12, do_sample=False
        )[0].tolist()
        for prompt in prompts
    ]
    sequences = serve(TransformersRunner(model, slots=4, context=80), prompts, batch_tokens=13)
    assert [sequence.tokens for sequence in sequences] == expected
    assert sum(sequence.cached for sequence in sequences) >= 32 * (len(prompts) - 4)


def test_models_that_the_cache_cannot_compute_are_refused() -> None:
    with pytest.raises(ArtifactError, match="softcap"):
        TransformersRunner(tiny("gemma2"), slots=1, context=16)
    with pytest.raises(ArtifactError, match="does not support custom attention"):
        TransformersRunner(tiny("bloom", n_head=4, n_layer=2), slots=1, context=16)
    with pytest.raises(ArtifactError, match="layers of type chunked_attention"):
        TransformersRunner(tiny("llama", layer_types=["chunked_attention"] * 2), slots=1, context=16)
    with pytest.raises(ArtifactError, match="the width of its sliding window"):
        TransformersRunner(tiny("llama", sliding_window=5), slots=1, context=16)
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    with pytest.raises(ArtifactError, match="rope_type dynamic"):
        TransformersRunner(tiny("llama", rope_parameters=rope), slots=1, context=16)
    with pytest.raises(ConfigError, match="at most 128 positions"):
        TransformersRunner(tiny("llama"), slots=1, context=129)


def test_two_of_four_layers_appear_in_the_choices() -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.get_parameter("model.layers.0.mlp.up_proj.weight").view(-1, 4)[:, 1:3] = 0
    choices = {choice.subject: choice for choice in TransformersRunner(model, slots=1, context=16).choices}
    assert choices["runner"].reason == "LlamaForCausalLM on cpu"
    assert choices["dtype"].value == "float32"
    assert choices["2:4 layers"].value == "dense"


def test_a_model_whose_logits_differ_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from server.engine.runners import slot_cache

    monkeypatch.setattr(slot_cache, "first_visible", lambda chunk, window: chunk.start)
    with pytest.raises(ArtifactError, match="other logits"):
        TransformersRunner(tiny("llama"), slots=1, context=16)


class FakeArtifact:
    """The part of an artifact that `load` needs."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.path = Path("somewhere")
        self.config = model.config.to_dict()
        self.weights = {name: weight.clone() for name, weight in model.state_dict().items()}

    def tensors(self) -> Any:
        return iter(self.weights.items())


@pytest.mark.parametrize("name", ["llama, tied", "gemma3_text"])
def test_a_loaded_model_computes_what_the_saved_one_did(name: str) -> None:
    model = tiny(name)
    artifact: Any = FakeArtifact(model)
    if name == "llama, tied":
        del artifact.weights["lm_head.weight"]
    ids = list(range(1, 30))
    assert torch.equal(own_logits(load(artifact, dtype=torch.float32), ids), own_logits(model, ids))


def test_a_weight_that_is_missing_unexpected_or_misshapen_is_named() -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    artifact: Any = FakeArtifact(tiny("llama"))
    weight = artifact.weights.pop(name)
    with pytest.raises(ArtifactError, match=f"missing weights: {name}"):
        load(artifact)
    artifact.weights |= {name: weight, "model.extra": weight}
    with pytest.raises(ArtifactError, match=r"unexpected weights: model\.extra"):
        load(artifact)
    del artifact.weights["model.extra"]
    artifact.weights[name] = weight[:5]
    with pytest.raises(ArtifactError, match=f"mismatched weights: .*{name}"):
        load(artifact)


@pytest.mark.parametrize("kind", ["", "bert-of-mine", "t5"])
def test_a_config_of_another_kind_of_model_is_refused(kind: str) -> None:
    artifact: Any = FakeArtifact(tiny("llama"))
    artifact.config["model_type"] = kind
    with pytest.raises(ArtifactError, match="not a known causal language model"):
        load(artifact)


def test_the_dtype_comes_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for capabilities, expected in (({"avx512_bf16": True}, torch.bfloat16), ({}, torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda value=capabilities: value)
        dtype, choice = choose_dtype(torch.device("cpu"))
        assert dtype == expected
        assert "avx512_bf16" in choice.reason
