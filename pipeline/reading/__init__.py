"""From a recipe's file to a checked recipe, and what its references stand for."""
