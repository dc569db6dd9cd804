"""The data wing: from video files to clips. Knows nothing of networks."""
