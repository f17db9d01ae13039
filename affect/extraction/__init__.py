"""Level 1: video to facial action units; frames never leave memory."""
