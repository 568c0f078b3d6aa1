"""What techniques share: N:M patterns, the OBS column sweep, rounding, and layer losses."""
