"""Evaluation tasks as frozen values, their reading and checks, and their prompts as token ids."""
