"""Running stages: in which order, under which locks, how they are watched, and how they ended."""
