"""What a training leaves on disk: checkpoints while it runs, an ordinary model when it has ended."""
