"""Archives of the ledger: closed rows of past months in files with checksums, and their sums kept in the ledger."""
