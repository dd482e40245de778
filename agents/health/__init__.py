"""How the whole system is: modes and their reasons, what workers report, and the screen of `cco status`."""
