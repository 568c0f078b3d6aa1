"""An artifact beside its bases: paired intervals, gates and the verdict."""
