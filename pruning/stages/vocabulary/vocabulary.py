"""The stage `vocabulary`: removes tokens that a deployment's text does not use, with their rows of the embeddings.

Only the number of rows changes, and the files that name token ids are rewritten, so any loader takes the result.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import msgspec
from tokenizers import Tokenizer

from pruning.data.retokenise import Retokeniser, retokenise
from pruning.errors import ModelRefused, RecipeError
from pruning.model import base
from pruning.model.settings import positions, read_settings
from pruning.model.weights import Rows, parameters
from pruning.recipe.options import Vocabulary
from pruning.stages.context import StageContext, StageModel
from pruning.stages.inputs import Inputs
from pruning.stages.training.data import refuse_scarce_text
from pruning.stages.training.distil.refit import refit
from pruning.stages.vocabulary import bpe
from pruning.stages.vocabulary.token_choice import choose as choose_tokens
from pruning.stages.vocabulary.token_choice import lengthening
from pruning.stages.vocabulary.token_counts import count_in_texts, with_general_use
from server.artifact.checkpoint.lineage import Step
from server.artifact.checkpoint.reader import Artifact
from server.artifact.checkpoint.writer import CheckpointWriter
from server.storage.files import write_atomically
from server.text import tokenizer_files
from server.text.tokenizer_files import GENERATION, SETTINGS, TOKENIZER, special_tokens

logger = logging.getLogger(__name__)

NAMING = ("_token_id", "_token_ids", "suppress_tokens", "bad_words_ids")
"""Suffixes of the keys in config.json and generation_config.json whose values are token ids."""
ADDED = "added_tokens_decoder"
"""The key in tokenizer_config.json that repeats the added tokens by id."""


class KeptTokens(msgspec.Struct, frozen=True):
    """The choice of tokens, stored in the stage's folder."""

    kept: list[int]
    """Ids of the kept tokens, ascending."""
    covered: float
    """The fraction of the text's tokens that are kept."""
    extra: float
    """How many more tokens the text takes than before, as a fraction."""
    seconds: float


class SmallerVocabulary(NamedTuple):
    """Configuration and files of the model with the smaller vocabulary."""

    config: dict[str, Any]
    files: dict[str, str]
    cut: list[str]
    """Names of the weights that lose rows."""


def check(stage: Vocabulary, config: Mapping[str, Any], context: StageContext) -> dict[str, Any]:
    """Choose the tokens and return the configuration afterwards.

    Raises RecipeError or ModelRefused before any work if the tokens cannot be removed, a window of the evaluation would
    exceed the model's positions, or there is too little text to fit on.
    """
    smaller = plan(config, context.inputs, choose(stage, config, context).kept)
    if stage.fit:
        refuse_scarce_text(stage.fit, context.inputs)
    before, after = _library(context.inputs), Tokenizer.from_str(smaller.files[TOKENIZER])
    texts = [windows.ids for windows in context.inputs.evaluation]
    longest = max(retokenise(ids, before, after).ids.shape[1] for ids in texts)
    limit = positions(config)
    if limit is not None and longest > limit:
        raise RecipeError(
            f"a window of the evaluation becomes {longest} tokens in the smaller vocabulary, but the model takes "
            f"{limit}: choose a window below {texts[0].shape[1]}"
        )
    return smaller.config


def apply(stage: Vocabulary, model: StageModel, context: StageContext) -> tuple[StageModel, Step]:
    """Cut the rows; returns the model with the rewritten files. The choice of tokens is journalled."""
    start = monotonic()
    choice = choose(stage, model.config, context)
    smaller = plan(model.config, context.inputs, choice.kept)
    result = StageModel(smaller.config, Rows(model.source, smaller.cut, choice.kept), smaller.files)
    options, fitted = msgspec.to_builtins(stage), None
    if stage.fit:
        retokeniser = Retokeniser(_library(context.inputs), Tokenizer.from_str(smaller.files[TOKENIZER]))
        result, fitted = refit(stage.fit, result, context.inputs, retokeniser, context.folder / "fit")
    step = Step(
        technique=options.pop("kind"),
        options=options
        | {"tokens": len(choice.kept), "of": model.config["vocab_size"]}
        | {"covered": choice.covered, "extra": choice.extra},
        sparsity={},
        seconds=round(choice.seconds + monotonic() - start, 1),
        parameters=parameters(result.source)[0],
        recovery=fitted,
    )
    return result, step


def later_inputs(stage: Vocabulary, model: StageModel | None, context: StageContext) -> Inputs:
    """The inputs of the stages after this one, whose base has the remaining tokens only.

    The base is `model`, the result of the stage where nothing was pruned before it; without, the base's own weights.
    """
    folder, given = context.folder / ("base" if model else "base-unfitted"), context.inputs.base
    if not folder.exists():
        kept = choose(stage, given.config, context).kept
        smaller = plan(given.config, context.inputs, kept)
        model = model or StageModel(smaller.config, Rows(given, smaller.cut, kept), smaller.files)
        _write(model, given, folder)
    return context.inputs.with_base(Artifact.open(folder))


def _write(model: StageModel, given: Artifact, folder: Path) -> None:
    """Write `model` as an artifact at `folder`, with the other files of `given`."""
    with CheckpointWriter(folder, packed=False) as writer:
        for name in model.source.names():
            writer.add(name, model.source.tensor(name))
        for name in tokenizer_files.NAMES:
            if name in model.files:
                writer.text(name, model.files[name])
            elif (given.path / name).exists():
                writer.copy(given.path / name)
        writer.text("config.json", _json(dict(model.config)))
        writer.finish(msgspec.structs.replace(given.lineage, files={}))


def choose(stage: Vocabulary, config: Mapping[str, Any], context: StageContext) -> KeptTokens:
    """The tokens to keep; counted once, then read from the stage's folder."""
    file = context.folder / "tokens.json"
    if file.exists():
        return msgspec.json.decode(file.read_bytes(), type=KeptTokens)
    start = monotonic()
    folder = context.inputs.base.path
    definition = read_settings(folder / TOKENIZER)
    ids = bpe.ids_of(definition)
    token = {id: token for token, id in ids.items()}
    named = [token[id] for id in _named(config, folder, definition)]
    # A base may sample ids beyond its tokenizer, as embeddings often have more rows than there are tokens.
    counts = {token[id]: count for id, count in count_in_texts(stage, context.inputs).items() if id in token}
    merges = bpe.Merges(definition["model"])
    used = with_general_use(counts, merges, stage.general) if stage.general else counts
    kept = choose_tokens(definition, [*named, *_spelled(folder, definition)], used, stage.keep)
    whole, extra = sum(counts.values()), lengthening(merges, kept, counts)
    covered = sum(count for token, count in counts.items() if token in kept) / whole
    logger.info(
        "%d of %d tokens remain, which cover %.2f %% of the text; without the others it takes %.2f %% more tokens",
        *(len(kept), len(ids), 100 * covered, 100 * extra / whole),
    )
    found = sorted(ids[token] for token in kept)
    choice = KeptTokens(found, round(covered, 6), round(extra / whole, 6), monotonic() - start)
    context.folder.mkdir(parents=True, exist_ok=True)
    write_atomically(file, msgspec.json.encode(choice))
    return choice


def plan(config: Mapping[str, Any], inputs: Inputs, kept: list[int]) -> SmallerVocabulary:
    """Configuration and files with only the tokens `kept`; raises ModelRefused if the rewritten tokenizer is wrong."""
    number = {old: new for new, old in enumerate(kept)}
    folder = inputs.base.path
    definition = bpe.without_others(read_settings(folder / TOKENIZER), number)
    smaller = {**_renumbered(config, number), "vocab_size": len(kept)}
    files = {TOKENIZER: _json(definition)}
    if generation := read_settings(folder / GENERATION):
        files[GENERATION] = _json(_renumbered(generation, number))
    settings = read_settings(folder / SETTINGS)
    if added := settings.get(ADDED):
        left = {str(number[int(id)]): token for id, token in added.items() if int(id) in number}
        files[SETTINGS] = _json({**settings, ADDED: left})
    loaded = Tokenizer.from_str(files[TOKENIZER])
    wrong = [token for token, id in bpe.ids_of(definition).items() if loaded.token_to_id(token) != id]
    if wrong or loaded.get_vocab_size() != len(kept):
        raise ModelRefused(f"the rewritten tokenizer gives {wrong[:1]} a wrong id")
    return SmallerVocabulary(smaller, files, _cut(config, smaller))


def _cut(config: Mapping[str, Any], smaller: Mapping[str, Any]) -> list[str]:
    """Names of the weights with a row per token; raises ModelRefused if a smaller vocab_size changes others."""
    old, new = config.get("vocab_size"), smaller["vocab_size"]
    before = {name: tuple(parameter.shape) for name, parameter in base.skeleton(config).named_parameters()}
    after = {name: tuple(parameter.shape) for name, parameter in base.skeleton(smaller).named_parameters()}
    changed = [name for name in before if before[name] != after.get(name)]
    for name in changed:
        if before[name][0] != old or after.get(name) != (new, *before[name][1:]):
            raise ModelRefused(f"a smaller vocab_size changes more than the rows of {name}, so no token can be removed")
    if not changed:
        raise ModelRefused("no weight has vocab_size rows, so no token can be removed")
    return changed


def _named(config: Mapping[str, Any], folder: Path, definition: Mapping[str, Any]) -> list[int]:
    """Token ids in the model's own files; raises ModelRefused if the tokenizer lacks one.

    A token that both tokenizer_config.json and tokenizer.json call added is not named by that alone.
    """
    settings, ids = read_settings(folder / SETTINGS), bpe.ids_of(definition)
    known = set(ids.values())
    found: list[int] = []
    for file, values in ("config.json", config), (GENERATION, read_settings(folder / GENERATION)):
        for id in _flat([values[key] for key in values if key.endswith(NAMING)]):
            if not isinstance(id, int) or id not in known:
                raise ModelRefused(f"{file} names the token id {id!r}, which {TOKENIZER} lacks")
            found.append(id)
    added = settings.get(ADDED) or {}
    if not isinstance(added, dict) or not added.keys() <= set(map(str, known)):
        raise ModelRefused(f"{ADDED} in {SETTINGS} is not an object whose keys are ids of tokens in {TOKENIZER}")
    own = {ids[token] for token in bpe.added_tokens(definition)}
    found += [id for id in map(int, added) if id not in own]
    found += [id if isinstance(id, int) else ids[id] for id in bpe.named_tokens(definition)]
    return [*found, *(ids[text] for text in special_tokens(settings).values() if text in ids)]


def _spelled(folder: Path, definition: Mapping[str, Any]) -> list[str]:
    """The added tokens that the chat template or a list in tokenizer_config.json spells."""
    settings = read_settings(folder / SETTINGS)
    lists = [settings.get(key) for key in ("additional_special_tokens", "extra_special_tokens")]
    text = json.dumps(lists, ensure_ascii=False) + (tokenizer_files.read(folder).chat_template or "")
    return [token for token in bpe.added_tokens(definition) if token in text]


def _flat(value: Any) -> Iterator[Any]:
    """The ids in a value that is an id, None, -1 (none), or a nested list of these."""
    if isinstance(value, list):
        for item in value:
            yield from _flat(item)
    elif value is not None and value != -1:
        yield value


def _renumbered(values: Mapping[str, Any], number: Mapping[int, int]) -> dict[str, Any]:
    """`values` of a configuration file with all token ids renumbered."""

    def new(value: Any) -> Any:
        return [new(item) for item in value] if isinstance(value, list) else number.get(value, value)

    return {key: new(value) if key.endswith(NAMING) else value for key, value in values.items()}


def _library(inputs: Inputs) -> Tokenizer:
    """The tokenizer of the base."""
    return tokenizer_files.read(inputs.base.path).library


def _json(values: Mapping[str, Any]) -> str:
    """The text of a JSON file, keys in their order."""
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
