"""Sentences on how other software treats an artifact's layouts, so that every loss is reported."""

from collections import Counter
from collections.abc import Iterator

from server.artifact.checkpoint.layouts import Balanced, Quantised
from server.artifact.checkpoint.reader import Artifact

READS = {
    "hf": "transformers, vLLM and llama.cpp's converter read",
    "compressed-tensors": "transformers and vLLM read",
    "gguf": "llama.cpp reads",
}


def of_layouts(artifact: Artifact, form: str, written: int) -> Iterator[str]:
    """Notes on sparse and quantised matrices in the format `form`, whose weights take `written` bytes."""
    layouts = [artifact.layout(name) for name in artifact.names()]
    kept = sorted({layout.keep for layout in layouts if isinstance(layout, Balanced | Quantised) and layout.keep})
    sizes = f"{written:,} bytes of weights, where the artifact has {artifact.size:,}"
    if kept:
        counts = ", ".join(map(str, kept))
        yield (
            f"Here at most {counts} of every 64 columns are kept (2:4 is 32 of 64). {READS[form]} a dense model with "
            f"zeros instead: {sizes}, and no faster for its zeros. No sparsity is named in the settings, since vLLM "
            "refuses a model that names one."
        )
    codes = Counter((layout.bits, layout.group) for layout in layouts if isinstance(layout, Quantised))
    if codes and form == "hf":
        names = " and ".join(f"{count} of {bits} bits" for (bits, _), count in sorted(codes.items()))
        yield (
            f"Integer matrices ({names}) are written as their values in bfloat16: {sizes}. "
            "`--to compressed-tensors` and `--to gguf` keep the integers."
        )
    if not kept and not codes:
        yield f"{READS[form]} it as any other model of its kind: {sizes}."
