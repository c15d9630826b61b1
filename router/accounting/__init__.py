"""Who is asking, what it costs and where that is written down."""
