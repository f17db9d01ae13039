"""From an experiment to a trained, evaluated run folder."""
