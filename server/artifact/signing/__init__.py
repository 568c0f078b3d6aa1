"""Signatures over whole artifacts, in the format of OpenSSF model-signing."""
