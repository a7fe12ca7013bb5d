"""Turns annotations and videos on disk into batches: annotations -> frame indices -> pixels -> clips -> batch."""
