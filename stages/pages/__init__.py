"""What pages of different stages share."""
