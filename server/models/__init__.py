"""The models that answer now: loaded, promoted, reloaded and retired without cutting a reply.

May import `artifact`, `engine`, `knowledge`, `metering`, `skills`, `storage`, `text`.
"""
