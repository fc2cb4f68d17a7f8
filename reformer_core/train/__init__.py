"""Training a Reformer on texts: `reformer train`, and the same from Python."""
