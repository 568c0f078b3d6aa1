"""One metered reply: admit, prefill, decode, count and settle, for every endpoint alike.

May import `engine`, `knowledge`, `metering`, `models`, `skills`, `storage`, `text`.
"""
