"""Which runner computes: the native one where it is built and has a plan for the model, else that of transformers.

The choice carries its reason; what was asked for by name is never replaced by something else.
"""

from pathlib import Path
from typing import Literal

import torch

from server.artifact.checkpoint.layouts import Quantised
from server.artifact.checkpoint.lineage import digest_of
from server.artifact.checkpoint.reader import Artifact
from server.engine.choice import Choice
from server.engine.native import absent, core
from server.engine.native.plan import Plan, Refused, plan_of
from server.engine.runners import Options, Scoring
from server.engine.runners.native_runner import NativeRunner
from server.errors import ConfigError

Wanted = Literal["auto", "native", "transformers"]


def load_runner(artifact: Artifact, wanted: Wanted, options: Options) -> Scoring:
    """A runner with the model loaded; raises ConfigError where `native` was asked for and cannot be."""
    plan, reason = _decide(artifact, wanted)
    return NativeRunner(artifact, plan, options) if plan else _transformers(artifact, options, reason)


def choices(artifact: Artifact, wanted: Wanted) -> tuple[Choice, ...]:
    """The runner that `load_runner` would make, and in which form it computes; no weight is read."""
    plan, reason = _decide(artifact, wanted)
    if plan:
        instructions, why = core().choose("")
        build = Choice("build", digest_of(Path(core().__file__))[:12], "the start of the compiled part's SHA-256")
        return Choice("runner", "native", reason), Choice("instructions", instructions.name, why), build
    from server.engine.runners.transformers_runner import choose_device, choose_dtype  # late: importing takes seconds

    device = choose_device()
    where = Choice("device", str(device), "a CUDA device where there is one")
    return Choice("runner", "transformers", reason), where, choose_dtype(device)[1]


def _decide(artifact: Artifact, wanted: Wanted) -> tuple[Plan | None, str]:
    """The plan of the native runner, or none where transformers has to run the model, and why."""
    if wanted == "transformers":
        return None, "it was asked for"
    if wanted == "auto" and torch.cuda.is_available():
        return None, "there is a CUDA device, which the native runner does not use"
    plan = _plan(artifact)
    if not isinstance(plan, str):
        return plan, "the model has a plan"
    if wanted == "native":
        raise ConfigError(f"runner is native, which cannot be: {plan}. Leave it out to run with transformers.")
    return None, f"the native runner cannot be used: {plan}"


def _plan(artifact: Artifact) -> Plan | str:
    """The plan of the native runner, or why there is none."""
    if reason := absent():
        return reason
    try:
        plan = plan_of(artifact.config, artifact.names())
    except Refused as refused:
        return str(refused)
    layouts = ((name, artifact.layout(name)) for name in sorted(plan.names))
    turned = [name for name, layout in layouts if isinstance(layout, Quantised) and layout.transposed]
    return f"the weight {turned[0]} is stored transposed" if turned else plan


def _transformers(artifact: Artifact, options: Options, reason: str) -> Scoring:
    from server.engine.runners import transformers_runner  # late: importing it takes seconds

    model = transformers_runner.load(artifact)
    runner = transformers_runner.TransformersRunner(model, slots=options.slots, context=options.context)
    first, *others = runner.choices
    runner.choices = (Choice(first.subject, first.kernel, f"{reason}; {first.reason}"), *others)
    return runner
