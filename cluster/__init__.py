"""What starts, watches and measures a cluster. Talks to it over HTTP."""
