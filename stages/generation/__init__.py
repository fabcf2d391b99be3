"""Text that a teacher writes: what stands behind the stage ``generate``."""
