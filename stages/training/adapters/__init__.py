"""Which parameters learn: all, some, or low-rank updates of frozen ones."""
