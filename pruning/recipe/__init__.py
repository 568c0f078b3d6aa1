"""What to prune, how and on which data: frozen values read from TOML.

May import `techniques`.
"""
