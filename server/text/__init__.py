"""Text to token ids and back: tokenizer files, tokenizers, and chat templates rendered in a sandbox.

May import no other room.
"""
