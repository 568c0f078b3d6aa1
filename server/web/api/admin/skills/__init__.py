"""The skills manager: skills with their revisions, what a draft answers, and what is published; admin listener only."""
