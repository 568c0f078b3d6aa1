"""What operators call: the usage page, reloads and the registry; served on the admin listener alone."""
