"""From annotations and videos on disk to a `Batch`: annotations -> frame indices -> pixels -> clips -> batch."""
