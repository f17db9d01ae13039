"""Ways from a video to its Recordings, one file each behind one protocol."""
