"""One metered reply: admit, prefill, decode, count and settle, for every endpoint alike.

May import `engine`, `metering`, `models`, `skills`, `storage`, `text`.
"""
