"""The models wing: networks, their weights, and where these come from. Knows nothing of video files."""
