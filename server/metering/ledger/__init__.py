"""The durable ledger: one row a reply, and totals that change in the same transaction."""
