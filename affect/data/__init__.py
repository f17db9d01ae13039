"""From corpora to batches: importers, annotations, windows, splits and the data module."""
