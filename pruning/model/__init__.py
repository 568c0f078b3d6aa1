"""A model's weights and blocks: imported, streamed from disk, and replayed bit for bit or refused.

May import no other room.
"""
