"""Endpoints, one file each: parse a request, call a room, write the response; they keep no state."""
