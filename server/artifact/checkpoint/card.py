"""Renders the Hugging Face model card of an artifact from its lineage record alone."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from server.artifact.checkpoint.chain import EXPORT, generations, links
from server.artifact.checkpoint.lineage import Data, Lineage, Step

FILE = "README.md"
SAFE = re.compile(r"[A-Za-z0-9][\w.-]*")
"""Strings that YAML reads as text without quotes."""
ROUNDING, TRAINING = {"round", "awq"}, {"reconstruct", "distill", "continue"}
"""Techniques that remove nothing; nor does GPTQ at sparsity 0."""
LABELS = {
    "found": "{}, as found",
    "dense": "{}, 16 bits",
    "int8": "{}, quantised to 8 bits in groups of 32",
    "pruned": "this model",
}
"""The base's name is filled in: the base of an artifact may be another artifact."""
USE = (
    "The uses of the base model, on the task that it was measured on. It is another model than its base: measure it on "
    "your own task before it is used there."
)
LIMITS = (
    "The limits and biases of the base model hold for this one, and what was done to it adds to them: rare knowledge "
    "and languages that the calibration text lacks suffer first. Perplexity says little of answers, and no figure here "
    "covers a task that is not named. The licence of the base applies."
)


def render(lineage: Lineage, config: Mapping[str, Any]) -> bytes:
    """The card as Markdown with its front matter."""
    oldest = list(generations(lineage))[-1]
    title = f"# {plain(oldest.base.name)}, {done(lineage)}"
    sections = {
        "Intended use": [USE],
        "Limits": [LIMITS, *_comparison(lineage)],
        "What was done": [*_base(oldest), *_removed(lineage), _shape(config)],
        "Before and after": _figures(lineage),
        "Data": list(_data(lineage)),
    }
    parts = [_front_matter(oldest, lineage), title]
    for heading, lines in sections.items():
        parts += [f"## {heading}", *lines]
    note = "`lineage.json` has every option, figure and digest; `secateur verify` compares the files with it."
    return ("\n\n".join([*parts, note]) + "\n").encode()


def done(lineage: Lineage) -> str:
    """One word for all steps since the first base: `pruned` before `quantised` before `trained` before `exported`."""
    steps = [step for step in links(lineage) if step.technique != EXPORT]
    others = [step for step in steps if step.technique not in TRAINING]
    if any(step.technique not in ROUNDING and step.options.get("sparsity") != 0 for step in others):
        return "pruned"
    return "quantised" if others else "trained" if steps else "exported"


def recovered(lineage: Lineage) -> bool:
    """Whether any training step of the lineage, parents included, improved the model instead of being rolled back."""
    return any(step.recovery and not step.recovery.rolled_back for step in links(lineage))


def plain(text: str) -> str:
    """`text` on one line, escaped for the card's tables and HTML."""
    return printable(text).replace("|", "\\|").replace("<", "&lt;")


def printable(text: str) -> str:
    """`text` on one line, without control characters."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _front_matter(oldest: Lineage, lineage: Lineage) -> str:
    terms = oldest.base.license.lower() or "unknown"
    values = {
        "base_model": _yaml(oldest.base.name),
        # The hub knows adapter, merge, quantized and finetune only.
        "base_model_relation": "finetune" if recovered(lineage) else "quantized",
        "license": _yaml(terms),
        "pipeline_tag": "text-generation",
    }
    techniques = sorted({step.technique for step in links(lineage)})
    tags = ["secateur", done(lineage), *techniques]
    lines = [*(f"{key}: {value}" for key, value in values.items()), "tags:", *(f"- {_yaml(tag)}" for tag in tags)]
    return "\n".join(["---", *lines, "---"])


def _yaml(text: str) -> str:
    """`text` in YAML, which reads JSON's quoted strings."""
    return text if SAFE.fullmatch(text) else msgspec.json.encode(text).decode()


def _base(oldest: Lineage) -> list[str]:
    note = f" ({plain(oldest.base.note)})" if oldest.base.note else ""
    return [f"It began as {plain(oldest.base.name)}{note}, SHA-256 `{oldest.base.digest}`."]


def _removed(lineage: Lineage) -> list[str]:
    lines = [f"{number}. {plain(describe(step))}" for number, step in enumerate(links(lineage), 1)]
    return ["\n".join(lines)] if lines else []


def describe(step: Step) -> str:
    """A step in one line: technique, options, what was removed, and the cost of training."""
    options = ", ".join(f"{key} = {value}" for key, value in step.options.items())
    parts = [f"{step.technique}{f' ({options})' if options else ''}: {step.parameters:,} parameters left"]
    if step.removed_blocks:
        parts.append(f"blocks {', '.join(map(str, step.removed_blocks))} removed")
    if step.sparsity:
        mean = sum(step.sparsity.values()) / len(step.sparsity)
        parts.append(f"{mean:.1%} zeros on average in {len(step.sparsity)} weights")
    if training := step.recovery:
        kept = "rolled back, since it did not help" if training.rolled_back else "kept"
        parts.append(f"trained on {training.tokens:,} tokens, {training.flops:.3g} FLOPs, {kept}")
    return "; ".join(parts)


def _shape(config: Mapping[str, Any]) -> str:
    context = config.get("max_position_embeddings")
    kind = f"Architecture: {plain(str(config.get('model_type', 'unknown')))}"
    return f"{kind}, with a context of {context:,} tokens." if isinstance(context, int) else f"{kind}."


RIVALS = {"int8": "quantised to 8 bits", "found": "as its publisher stores it"}
"""Other forms of the base that a user could serve instead."""


def _comparison(lineage: Lineage) -> list[str]:
    """A warning for each form of the base with both fewer bytes and the lower perplexity."""
    evaluation = lineage.evaluation
    if evaluation is None:
        return []
    size, quality = evaluation.bytes, evaluation.perplexity
    return [
        f"**{plain(lineage.base.name)}, {form}, is smaller than this model and has the lower perplexity.**"
        for key, form in RIVALS.items()
        if {key, "pruned"} <= size.keys() & quality.keys()
        and size[key] <= size["pruned"]
        and quality[key] <= quality["pruned"]
    ]


def _figures(lineage: Lineage) -> list[str]:
    evaluation = lineage.evaluation
    if evaluation is None:
        return ["It was not evaluated."]
    texts = evaluation.texts
    heads = " | ".join(f"perplexity, {plain(text.name)}" if text.name else "perplexity" for text in texts)
    rows = [f"| | bytes | {heads} |", "|---" * (2 + len(texts)) + "|", *_first_base(lineage)]
    for key, label in LABELS.items():
        if key in evaluation.bytes and key in evaluation.perplexity:
            name = label.format(plain(lineage.base.name))
            figures = " | ".join(f"{text.perplexity[key]:.2f}" for text in texts)
            rows.append(f"| {name} | {evaluation.bytes[key]:,} | {figures} |")
    named = [f"{plain(text.data.source)}{f' ({plain(text.name)})' if text.name else ''}" for text in texts]
    windows = f"{evaluation.data.sequences} windows of {evaluation.window} tokens"
    basis = f"Perplexity on {windows} of {'each of ' if len(texts) > 1 else ''}{', '.join(named)}."
    gates = [
        f"- {plain(gate.task)}: {'passed' if gate.passed else 'failed'}"
        + "".join(f", {plain(name)} {value:.4g}" for name, value in gate.figures.items())
        for gate in evaluation.gates
    ]
    return ["\n".join(rows), basis, *(["\n".join(gates)] if gates else [])]


def _first_base(lineage: Lineage) -> list[str]:
    """The first base's row of the comparison; empty if it is this artifact's base or was evaluated on another text."""
    oldest = list(generations(lineage))[-1]
    ours, theirs = lineage.evaluation, oldest.evaluation
    if oldest is lineage or ours is None or theirs is None or theirs.data.digest != ours.data.digest:
        return []
    first = {text.data.digest: text.perplexity for text in theirs.texts}
    values = [first.get(text.data.digest, {}).get("dense") for text in ours.texts]
    figures = " | ".join([f"{theirs.bytes['dense']:,}", *("" if value is None else f"{value:.2f}" for value in values)])
    return [f"| {plain(oldest.base.name)}, 16 bits, the first base | {figures} |"]


def _data(lineage: Lineage) -> Iterator[str]:
    lines = []
    if lineage.calibration:
        lines += _data_lines("Calibration", lineage.calibration)
    for step in lineage.steps:
        if step.recovery:
            lines += _data_lines("Training", step.recovery.training)
            lines += _data_lines("Held out from it", step.recovery.held_out)
    for text in lineage.evaluation.texts if lineage.evaluation else ():
        lines += _data_lines("Evaluation", text.data)
    yield "\n".join(lines) or "None."


def _data_lines(what: str, data: Data) -> list[str]:
    """The line of `data`, and one for each source of a mixture."""
    return [f"- {what}: {data_line(data)}", *(f"    - {data_line(part)}" for part in data.parts)]


def data_line(data: Data) -> str:
    """A text, the amount drawn from it, and the digest of the token ids."""
    return f"{plain(data.source)}, {data.sequences} sequences of {data.tokens} tokens, SHA-256 `{data.digest}`"
