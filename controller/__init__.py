"""The controller: who is in, and who sees whom."""
