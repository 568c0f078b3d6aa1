"""Endpoints, one file each: parse a request, call the room behind it, write its answer."""
