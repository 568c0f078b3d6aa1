"""Clients that people use, each in an environment of its own, against one real server: `make exam-clients`."""
