"""A finished model for others."""
