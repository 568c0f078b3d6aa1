"""An engine on other machines, by vLLM's token protocol or OpenAI's chat completions, streamed."""
