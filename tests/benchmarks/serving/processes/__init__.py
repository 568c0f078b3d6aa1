"""One script for each process that is measured and is not the server itself."""
