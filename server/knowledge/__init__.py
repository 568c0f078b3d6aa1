"""Knowledge: documents become a searchable artifact of passages, built incrementally and opened read-only.

May import `artifact`, `engine`, `storage`, `text`.
"""
