"""Importing a base model, reading weights one at a time, and replaying blocks bit-identically.

May import no other room.
"""
