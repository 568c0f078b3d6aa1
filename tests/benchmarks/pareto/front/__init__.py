"""Which candidates are on a front, and how that is shown."""
