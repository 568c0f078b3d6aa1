"""Which versions of which models exist, what was measured of them, who approved them, and which one is served."""
