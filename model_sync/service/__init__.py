"""The query service: recommendations and events over HTTP."""
