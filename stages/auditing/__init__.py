"""What the ``audit`` stage writes of an audit: the same sections as text and as a page."""
