"""How much memory a training will take, before anything is loaded."""
