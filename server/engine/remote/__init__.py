"""An engine on other machines: token ids go to backends that speak vLLM's token protocol, and come back streamed."""
