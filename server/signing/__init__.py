"""Signatures over whole artifacts: who vouches for these very files."""
