"""The worker: its agents, what they keep per partition, where patches go, and what it tells of itself."""
