"""Which runner computes: the native one where it is built and has a plan for the model, else that of transformers.

The choice carries its reason; what was asked for by name is never replaced by something else.
"""

from typing import Literal

import torch

from server.checkpoint.reader import Artifact
from server.engine.choice import Choice
from server.engine.runners import Options, Runner
from server.engine.runners.native_runner import NativeRunner
from server.errors import ConfigError
from server.native import absent
from server.native.plan import Refused, plan_of

Wanted = Literal["auto", "native", "transformers"]


def load_runner(artifact: Artifact, wanted: Wanted, options: Options) -> Runner:
    """A runner with the model loaded; raises ConfigError where `native` was asked for and cannot be."""
    if wanted == "transformers":
        return _transformers(artifact, options, "it was asked for")
    if wanted == "auto" and torch.cuda.is_available():
        return _transformers(artifact, options, "there is a CUDA device, which the native runner does not use")
    runner = _native(artifact, options)
    if not isinstance(runner, str):
        return runner
    if wanted == "native":
        raise ConfigError(f"runner is native, which cannot be: {runner}. Leave it out to run with transformers.")
    return _transformers(artifact, options, f"the native runner cannot be used: {runner}")


def _native(artifact: Artifact, options: Options) -> Runner | str:
    """The native runner, or why there is none."""
    if reason := absent():
        return reason
    try:
        return NativeRunner(artifact, plan_of(artifact.config, artifact.names()), options)
    except Refused as refused:
        return str(refused)


def _transformers(artifact: Artifact, options: Options, reason: str) -> Runner:
    from server.engine.runners import transformers_runner  # late: importing it takes seconds

    model = transformers_runner.load(artifact)
    runner = transformers_runner.TransformersRunner(model, slots=options.slots, context=options.context)
    first, *others = runner.choices
    runner.choices = (Choice(first.subject, first.kernel, f"{reason}; {first.reason}"), *others)
    return runner
