"""A ledger of many rows: what a reply, a scrape and the admin page cost on it, and how long archiving takes."""
