"""From what exists on disk to a `Batch`: annotations -> frame indices -> pixels -> clips -> batch."""
