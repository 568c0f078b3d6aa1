"""Guessed API keys and forged logins."""
