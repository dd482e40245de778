"""Batch rebuilds: what they read, where they publish, as a service, and on Spark."""
