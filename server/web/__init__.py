"""HTTP: listeners, routes, and endpoints that only translate between a wire format and the rooms below.

May import `artifact`, `chat`, `engine`, `knowledge`, `metering`, `models`, `skills`, `storage`.
"""
