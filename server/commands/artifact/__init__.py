"""`secateur export`, `lineage`, `registry`, `sign` and `verify`: what is done with an artifact."""
