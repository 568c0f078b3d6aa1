"""Chooses the runner: the native one where it is built and has a plan for the model, else that of transformers.

Each choice carries its reason. A runner that was asked for by name is never replaced.
"""

from pathlib import Path
from typing import Literal

import torch

from server.artifact.checkpoint.layouts import Quantised
from server.artifact.checkpoint.lineage import digest_of
from server.artifact.checkpoint.reader import Artifact
from server.engine.choice import Choice
from server.engine.native import absent, core
from server.engine.native.plan import Refused
from server.engine.native.plan.decoder import Plan, plan_of
from server.engine.runners import Options, Scoring
from server.engine.runners.native_runner import NativeRunner
from server.errors import ConfigError

Wanted = Literal["auto", "native", "transformers"]


def load_runner(artifact: Artifact, wanted: Wanted, options: Options) -> Scoring:
    """A runner with the model loaded; raises ConfigError if `wanted` is "native" and it cannot run the model."""
    plan, reason = _decide(artifact, wanted)
    return NativeRunner(artifact, plan, options) if plan else _transformers(artifact, options, reason)


def choices(artifact: Artifact, wanted: Wanted) -> tuple[Choice, ...]:
    """The choices that `load_runner` would make, without reading a weight."""
    plan, reason = _decide(artifact, wanted)
    if plan:
        instructions, why = core().choose("")
        build = Choice("build", digest_of(Path(core().__file__))[:12], "the start of the compiled module's SHA-256")
        return Choice("runner", "native", reason), Choice("instructions", instructions.name, why), build
    from server.engine.runners.transformers_runner import choose_device, choose_dtype  # late: takes seconds

    device = choose_device()
    where = Choice("device", str(device), "a CUDA device where there is one")
    return Choice("runner", "transformers", reason), where, choose_dtype(device)[1]


def _decide(artifact: Artifact, wanted: Wanted) -> tuple[Plan | None, str]:
    """The plan of the native runner, or None for transformers, and the reason."""
    if wanted == "transformers":
        return None, "it was asked for"
    if wanted == "auto" and torch.cuda.is_available():
        return None, "there is a CUDA device, which the native runner does not use"
    plan = _plan(artifact)
    if not isinstance(plan, str):
        return plan, "the model has a plan"
    if wanted == "native":
        raise ConfigError(f'runner = "native" cannot run this model: {plan}. Leave it out to run with transformers.')
    return None, f"the native runner cannot be used: {plan}"


def _plan(artifact: Artifact) -> Plan | str:
    """The plan of the native runner, or the reason why there is none."""
    if reason := absent():
        return reason
    try:
        plan = plan_of(artifact.config, artifact.names())
    except Refused as refused:
        return str(refused)
    layouts = ((name, artifact.layout(name)) for name in sorted(plan.names))
    transposed = [name for name, layout in layouts if isinstance(layout, Quantised) and layout.transposed]
    return f"the weight {transposed[0]} is stored transposed" if transposed else plan


def _transformers(artifact: Artifact, options: Options, reason: str) -> Scoring:
    from server.engine.runners import transformers_runner  # late: takes seconds

    model = transformers_runner.load(artifact)
    runner = transformers_runner.TransformersRunner(model, slots=options.slots, context=options.context)
    first, *others = runner.choices
    runner.choices = (Choice(first.subject, first.value, f"{reason}; {first.reason}"), *others)
    return runner
