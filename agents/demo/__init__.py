"""`cco demo`: its data, its story, and the service at its end."""
