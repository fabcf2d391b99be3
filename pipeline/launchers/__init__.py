"""One module a launcher: the command that starts a stage's ranks, and what can be checked before it is used."""
