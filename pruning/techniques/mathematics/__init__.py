"""Shared by the techniques: N:M patterns, the OBS column sweep, conjugate gradients, rounding, and layer losses."""
