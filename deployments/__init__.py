"""What runs on Ray Serve: thin shells around `router` and `models`, and the HTTP door."""
