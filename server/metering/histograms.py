"""Histograms of replies by the names of OpenTelemetry's conventions for generative AI, and their `vllm:*` twins.

Labels are a configured skill, a loaded model and an outcome: nothing that a request can choose.
"""

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Histogram

from server.metering.meter import Ended, Observer

# The boundaries that the conventions recommend.
DURATION = tuple(0.01 * 2**exponent for exponent in range(14))
FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
BETWEEN = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0)
USAGE = tuple(4.0**exponent for exponent in range(14))
FAILED = ("error",)
CALL = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "gen_ai_response_model")


class Histograms:
    """The `gen_ai_*` histograms; the request's model is the skill, the response's model the artifact."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str, labels: Iterable[str], buckets: Sequence[float]) -> Histogram:
            return Histogram(name, text, (*CALL, *labels), registry=registry, buckets=buckets)

        self._duration = histogram(
            "gen_ai_server_request_duration_seconds",
            "From the admission of a request to the end of its reply; error_type is empty where it did not fail.",
            ("error_type",),
            DURATION,
        )
        self._first_token = histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "From the admission of a request until its first token was counted.",
            (),
            FIRST_TOKEN,
        )
        self._per_token = histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "From the first token to the end, for each token after the first.",
            (),
            PER_TOKEN,
        )
        self._queue = histogram(
            "secateur_request_queue_seconds", "From the admission of a request until its prefill began.", (), DURATION
        )
        self._between = histogram(
            "secateur_inter_token_latency_seconds",
            "Between two steps of a reply, which give one token each, or more where guesses were right.",
            (),
            BETWEEN,
        )
        self._search = histogram(
            "secateur_knowledge_search_seconds", "The search of a question in the skill's knowledge.", (), DURATION
        )
        self._quoted = histogram(
            "secateur_knowledge_tokens",
            "Prompt tokens that quoted passages took, of replies from knowledge.",
            (),
            USAGE,
        )
        self._usage = histogram(
            "gen_ai_client_token_usage", "Tokens of a reply, cached ones included.", ("gen_ai_token_type",), USAGE
        )

    def ended(self, reply: Ended) -> None:
        """Observe a finished reply."""
        call = ("chat", "secateur", reply.skill, reply.model)
        self._duration.labels(*call, reply.outcome if reply.outcome in FAILED else "").observe(reply.duration)
        if reply.first_token is not None:
            self._first_token.labels(*call).observe(reply.first_token)
            if reply.usage.output > 1:
                seconds = (reply.duration - reply.first_token) / (reply.usage.output - 1)
                self._per_token.labels(*call).observe(seconds)
        if reply.waited is not None:
            self._queue.labels(*call).observe(reply.waited)
        if reply.retrieval is not None:
            self._search.labels(*call).observe(reply.retrieval)
            self._quoted.labels(*call).observe(reply.knowledge_tokens)
        between = self._between.labels(*call)
        for seconds in reply.gaps:
            between.observe(seconds)
        for kind, count in (("input", reply.usage.prompt), ("output", reply.usage.output)):
            self._usage.labels(*call, kind).observe(count)


class VllmHistograms:
    """The same replies under vLLM's current and former metric names, for dashboards and autoscalers made for it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"vllm:{name}", text, ("model_name",), registry=registry, buckets=buckets)

        self._of = {name: histogram(name, text, buckets) for name, text, buckets in VLLM}

    def ended(self, reply: Ended) -> None:
        """Observe a finished reply."""
        first, waited = reply.first_token, reply.waited
        seen: dict[str, float | None] = {
            "e2e_request_latency_seconds": reply.duration,
            "time_to_first_token_seconds": first,
            "request_queue_time_seconds": waited,
            "request_prompt_tokens": reply.usage.prompt,
            "request_generation_tokens": reply.usage.output,
            "request_max_num_generation_tokens": reply.granted,
            "request_params_max_tokens": reply.granted,
        }
        if first is not None and waited is not None:
            seen["request_prefill_time_seconds"] = max(0.0, first - waited)
            seen["request_decode_time_seconds"] = reply.duration - first
            seen["request_inference_time_seconds"] = reply.duration - waited
        if first is not None and reply.usage.output > 1:
            each = (reply.duration - first) / (reply.usage.output - 1)
            seen |= dict.fromkeys(EACH_TOKEN, each)
        for name, value in seen.items():
            if value is not None:
                self._of[name].labels(reply.model).observe(value)


EACH_TOKEN = ("inter_token_latency_seconds", "time_per_output_token_seconds", "request_time_per_output_token_seconds")
VLLM: tuple[tuple[str, str, Sequence[float]], ...] = (
    ("e2e_request_latency_seconds", "Duration of a request.", DURATION),
    ("time_to_first_token_seconds", "Time to the first token.", FIRST_TOKEN),
    *((name, "Mean time for each later token of a request.", PER_TOKEN) for name in EACH_TOKEN),
    ("request_queue_time_seconds", "Time in the queue.", DURATION),
    ("request_prefill_time_seconds", "From the queue to the first token.", DURATION),
    ("request_decode_time_seconds", "From the first token to the last.", DURATION),
    ("request_inference_time_seconds", "From the queue to the last token.", DURATION),
    ("request_prompt_tokens", "Prompt tokens of a request.", USAGE),
    ("request_generation_tokens", "Output tokens of a request.", USAGE),
    ("request_max_num_generation_tokens", "The most output tokens that a request might have had.", USAGE),
    ("request_params_max_tokens", "Likewise.", USAGE),
)


class Observers:
    """Passes each reply on to several observers."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)

    def ended(self, reply: Ended) -> None:
        """Pass it on to each."""
        for observer in self._observers:
            observer.ended(reply)
