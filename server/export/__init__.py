"""Writes an artifact in the formats of other software, each value as the artifact has it or refused."""
