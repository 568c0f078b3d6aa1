"""The durable ledger: one row per reply, and totals updated in the same transaction."""
