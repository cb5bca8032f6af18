"""meshctl, the command line."""
