"""The models that answer now: loaded, promoted, reloaded and retired without cutting a reply.

May import `artifact`, `engine`, `metering`, `skills`, `storage`, `text`.
"""
