"""What a training says of itself: losses, speed, memory, curves, and steps that must be taken back."""
