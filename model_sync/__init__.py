"""The published model: the Index contract, the index in memory, and what it takes to query them."""
