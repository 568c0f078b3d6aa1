"""Structured output over HTTP: how many real schemas compile, whether replies match, and what constraining costs."""
