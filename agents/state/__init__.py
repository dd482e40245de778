"""Durable state: its format, who owns it, checkpoints, copies and seeds of it, and the journal."""
