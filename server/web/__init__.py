"""HTTP: listeners, routes and endpoints that only translate a wire format.

May import `artifact`, `chat`, `engine`, `metering`, `models`, `skills`, `storage`.
"""
