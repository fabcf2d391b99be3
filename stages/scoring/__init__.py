"""A teacher's scores of text: how they are made, how they lie on disk, and how they are read."""
