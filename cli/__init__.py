"""The talstack command: one click command per module."""
