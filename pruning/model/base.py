"""Imports a base model as an artifact, and builds models: skeletons without weights, or loaded from a source.

The one file of this package that imports transformers; code that comes with a model is never run.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import msgspec
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as logs

from pruning.errors import ModelRefused, refusing
from pruning.model.blocks import prunable_blocks
from pruning.model.gguf_file import Header, own_progress
from pruning.model.outline import refuse_config, refuse_files
from pruning.model.settings import json_text, license_of, read_settings
from pruning.model.source import Source, noted, replaced_template
from pruning.model.versions import versions
from pruning.model.weights import InMemory, Shards, WeightSource, checkpoint_files
from server.artifact.checkpoint import lineage as record
from server.artifact.checkpoint.reader import Artifact
from server.artifact.checkpoint.writer import CheckpointWriter
from server.progress import counted
from server.storage.digests import FileDigests
from server.text import tokenizer_files

logger = logging.getLogger(__name__)

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def import_base(source: Source, target: Path, digests: FileDigests | None = None) -> None:
    """Write a Hugging Face directory or GGUF file as a base artifact at `target`; raises ModelRefused.

    `digests` remembers the digests of its files.
    """
    path = source.path
    if path.is_dir() or path.suffix == ".gguf":
        with refusing(f"{path} cannot be read as a model"):
            writer = CheckpointWriter(target, packed=False, digests=digests)
            (_import_directory if path.is_dir() else _import_gguf)(source, writer)
    else:
        raise ModelRefused(f"{path} is neither a GGUF file nor a directory with config.json and *.safetensors")


def skeleton(config: Mapping[str, Any]) -> nn.Module:
    """The model that `config` describes, in evaluation mode: parameters on the meta device, buffers computed.

    Raises ModelRefused for anything but an unquantised causal language model that transformers knows.
    """
    refuse_config(config)
    _refuse_other_kinds(config)
    values = {key: value for key, value in _without_choices(config).items() if key != "model_type"}
    try:
        settings = AutoConfig.for_model(config["model_type"], **values)
        with _EmptyOnMeta():
            model: nn.Module = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)  # type: ignore[no-untyped-call]
    except (ValueError, StrictDataclassError) as error:  # the last line has the reason
        reason = str(error).splitlines()[-1].strip().removeprefix("ValueError: ")
        raise ModelRefused(f"transformers refuses config.json: {reason}") from error
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and not parameter.is_meta:
                module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=False)
    stored = model.state_dict().keys()
    lost = [name for name, buffer in model.named_buffers() if buffer.is_meta and name not in stored]
    if lost:
        raise ModelRefused(f"a {config['model_type']} model cannot be built without weights: {lost[0]} depends on them")
    return model.eval().requires_grad_(False)


def load(config: Mapping[str, Any], source: WeightSource, dtype: torch.dtype, *, copy: bool = True) -> nn.Module:
    """The model that `config` describes with all weights of `source` in memory as `dtype`; tied ones stay tied.

    Without `copy`, weights that are stored as `dtype` stay mapped from their file, and must not be written to.
    """
    fill(network := skeleton(config), source, dtype, copy=copy)
    return network


def fill(network: nn.Module, source: WeightSource, dtype: torch.dtype, *, prefix: str = "", copy: bool = True) -> None:
    """Load those weights of a skeleton whose names begin with `prefix` and that are not loaded yet, as `load` does."""
    loaded: dict[int, nn.Parameter] = {}
    for name, empty in list(network.named_parameters(remove_duplicate=False)):
        if name.startswith(prefix) and empty.is_meta:
            if id(empty) not in loaded:
                loaded[id(empty)] = nn.Parameter(source.tensor(name).to(dtype, copy=copy), requires_grad=False)
            path, _, leaf = name.rpartition(".")
            network.get_submodule(path)._parameters[leaf] = loaded[id(empty)]


def advance(model: nn.Module, ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
    """Decode `ids` [batch, tokens]: logits [batch, tokens, vocabulary], and the KV cache for the next call.

    A `cache` of None starts a new one.
    """
    output = model(input_ids=ids, use_cache=True, **({} if cache is None else {"cache": cache}))
    return output.logits, output.cache


class _EmptyOnMeta(TorchFunctionMode):
    """Puts uninitialised tensors, as weights are at first, on the meta device; computed buffers stay real."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        device = {"device": "meta"} if func is torch.empty else {}
        return func(*args, **{**(kwargs or {}), **device})


def _refuse_other_kinds(config: Mapping[str, Any]) -> None:
    """Raise ModelRefused for a model that is not a causal language model."""
    kind = config.get("model_type")
    expected = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(str(kind))
    given = config.get("architectures") or [expected]
    if expected is None or expected not in given:
        raise ModelRefused(f"{given[0] or kind} is not a causal language model, and only those can be pruned")


def _without_choices(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` without kernel choices, which may name code on a hub that transformers would download and run."""
    return {
        key: _without_choices(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if not re.fullmatch(r"_?(attn|experts)_implementation.*", str(key))
    }


def _import_directory(given: Source, target: CheckpointWriter) -> None:
    """Copy a Hugging Face directory into a base artifact, tensor by tensor, under current tensor names."""
    path = given.path
    refuse_files(path)
    files = {name: path / name for name in tokenizer_files.NAMES if (path / name).exists()}
    replaced = replaced_template(given, read_settings(path / tokenizer_files.SETTINGS))
    config = read_settings(path / "config.json")
    artifact = (path / record.FILE).exists()
    source: WeightSource = Artifact.open(path) if artifact else Shards(checkpoint_files(path))
    _refuse_endless(config, len(source.names()))
    model = skeleton(config)
    prunable_blocks(model)  # refuse before copying
    found = _renamed(model, source.names())
    _refuse_constants(model, found, source)
    _refuse_untied(model, found, source)
    kinds: set[torch.dtype] = set()
    with target as writer:
        for name, parameter in counted("copying the weights", list(model.named_parameters())):
            if name not in found:
                raise ModelRefused(f"{path} has no tensor {name}, which a {config['model_type']} model needs")
            tensor = source.tensor(found[name])
            kinds.add(tensor.dtype)
            writer.add(name, _stored(name, tensor, parameter.shape))
        for name, file in files.items():
            if name not in replaced:
                writer.copy(file)
        for name, text in replaced.items():
            writer.text(name, text)
        if isinstance(source, Artifact):
            _finish(writer, config, _own(source, given))
        else:
            note = noted(_rounded(kinds), given)
            base = record.Base(path.resolve().name, given.digest, note, license_of(path))
            _finish(writer, config, _lineage(base))


def _rounded(kinds: set[torch.dtype]) -> str:
    """The lineage's note, also logged, that tensors were rounded to bfloat16; empty if none was."""
    if not (others := sorted(str(kind).removeprefix("torch.") for kind in kinds - {torch.bfloat16})):
        return ""
    logger.info("the base is rounded to bfloat16 from %s", ", ".join(others))
    return f"rounded to bfloat16 from {', '.join(others)}"


def _renamed(model: nn.Module, names: Sequence[str]) -> dict[str, str]:
    """The stored name of each tensor by its name in `model`; transformers' renaming rules map old names."""
    assert isinstance(model, PreTrainedModel)
    renamings = [rule for rule in get_model_conversion_mapping(model) if isinstance(rule, WeightRenaming)]
    prefix, own = model.base_model_prefix, model.state_dict()
    return {rename_source_key(name, renamings, [], prefix, own)[0]: name for name in names}


def _refuse_endless(config: Mapping[str, Any], tensors: int) -> None:
    """Raise ModelRefused for more blocks than tensors: a damaged config that would take for ever to build."""
    for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
        if isinstance(config.get(key), int) and config[key] > tensors:
            raise ModelRefused(f"config.json says {key} = {config[key]}, but the files hold {tensors} tensors in all")


def _refuse_constants(model: nn.Module, found: Mapping[str, str], source: WeightSource) -> None:
    """Raise ModelRefused for a stored buffer that differs from the computed one, as artifacts keep weights only."""
    state = model.state_dict()
    for name in sorted(found.keys() & state.keys() - dict(model.named_parameters(remove_duplicate=False)).keys()):
        if state[name].is_meta or not torch.equal(state[name], source.tensor(found[name]).to(state[name])):
            raise ModelRefused(f"the files hold a changed constant, {name}, which an artifact cannot keep")


def _refuse_untied(model: nn.Module, found: Mapping[str, str], source: WeightSource) -> None:
    """Raise ModelRefused where tensors tied by config.json differ; warn of tensors without a place in the model."""
    assert isinstance(model, PreTrainedModel)
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        other = first.setdefault(id(parameter), name)
        both = other != name and name in found and other in found
        if both and not torch.equal(source.tensor(found[name]), source.tensor(found[other])):
            raise ModelRefused(
                f"config.json ties {name} to {other}, but the files hold two different tensors: if both are meant, "
                "set tie_word_embeddings to false"
            )
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    places = {*model.state_dict(), *(name for name, _ in model.named_buffers())}
    extra = sorted(name for name in found if name not in places and not any(p.search(name) for p in ignored))
    if extra:
        logger.warning("tensors without a place in the model are left out: %d, %s for instance", len(extra), extra[0])


def _import_gguf(given: Source, target: CheckpointWriter) -> None:
    """Dequantise a GGUF file into a base artifact; holds the whole model in memory, at 16 bits."""
    path = given.path
    header = Header(path)
    with (
        own_progress(logs.set_tqdm_hook),
        redirect_stderr(StringIO()),
    ):  # some of its progress bars would fill a log file
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
            output_loading_info=True,
        )
    model, report = loaded
    if missing := sorted(map(str, report["missing_keys"])):
        raise ModelRefused(f"{path} lacks {len(missing)} of the model's tensors, {missing[0]} for instance")
    state = model.state_dict()
    header.refuse_left_out(len(state))
    prunable_blocks(model)
    config = model.config.to_dict() | {"architectures": [type(model).__name__]}
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        config.pop(key, None)
    _refuse_constants(skeleton(config), {name: name for name in state}, InMemory(state))
    with target as writer:
        for name, parameter in counted("writing the weights", list(model.named_parameters())):
            writer.add(name, _stored(name, parameter.detach(), parameter.shape))
        ends = {key: value for key, value in config.items() if key.endswith("_token_id") and value is not None}
        writer.text("generation_config.json", json_text(ends))
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        texts = header.tokenizer_files(tokenizer)
        texts |= replaced_template(given, msgspec.json.decode(texts[tokenizer_files.SETTINGS]))
        for name, text in texts.items():
            writer.text(name, text)
        base = header.base(given.digest)
        _finish(writer, config, _lineage(msgspec.structs.replace(base, note=noted(base.note, given))))


def _finish(writer: CheckpointWriter, config: Mapping[str, Any], lineage: record.Lineage) -> None:
    """Write config.json and the lineage, and finish the artifact."""
    writer.text("config.json", json_text({**config, "dtype": "bfloat16"}))
    writer.finish(lineage)


def _lineage(base: record.Base) -> record.Lineage:
    """The lineage of an imported base: no steps."""
    return record.Lineage(created=now(), base=base, recipe={}, steps=(), versions=versions())


def _own(artifact: Artifact, given: Source) -> record.Lineage:
    """The lineage of a base that is itself an artifact, with the artifact's lineage as its parent."""
    parent, name = artifact.lineage, artifact.path.resolve().name
    base = record.Base(name, given.digest, noted("made by Secateur", given), parent.base.license)
    return msgspec.structs.replace(_lineage(base), parent=parent, parent_digest=record.address(parent))


def now() -> str:
    """The current time, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _stored(name: str, tensor: Tensor, shape: torch.Size) -> Tensor:
    """`tensor` as bfloat16, as artifacts store it; raises ModelRefused unless it is a finite float of `shape`."""
    if tensor.shape != shape:
        raise ModelRefused(f"the tensor {name} is {list(tensor.shape)}, but config.json asks for {list(shape)}")
    if tensor.dtype not in FLOATS:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise ModelRefused(f"the tensor {name} is stored as {kind}: start from weights of 16 or 32 bits")
    stored = tensor.to(torch.bfloat16)
    if not stored.isfinite().all():
        raise ModelRefused(f"the tensor {name} holds values that are not finite in bfloat16")
    return stored
