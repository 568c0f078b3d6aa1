"""Text sources to seeded token ids [sequences, tokens], with the digest of what was drawn.

May import `model`, `recipe`.
"""
