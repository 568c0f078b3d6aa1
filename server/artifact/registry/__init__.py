"""The registry: versions of models, their gate results and approvals, and which one is in production."""
