"""From text sources, documents and the base itself to seeded token ids [sequences, tokens] with their digest.

May import `model`, `recipe`.
"""
