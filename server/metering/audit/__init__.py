"""The audit log: who did what, when, from where and with what result, chained by hash in the ledger's database."""
