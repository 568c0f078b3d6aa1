"""Tasks as frozen values, and their prompts as token ids."""
