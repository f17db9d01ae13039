"""Affect recognition from video without keeping or moving faces."""

__version__ = "0.4.0"
