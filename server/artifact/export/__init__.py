"""Exports to other software's formats; what a format cannot hold exactly is refused or named in a note."""
