"""Rotation of the mesh root: one that nobody has to join again for."""
