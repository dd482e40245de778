"""The audit: indices and states compared with what the log says they should be."""
