"""Pictures of pages, for people to look at and for docs/."""
