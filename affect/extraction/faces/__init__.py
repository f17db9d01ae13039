"""Faces in frames: where they are, their 68 landmarks, and which belong to one person."""
