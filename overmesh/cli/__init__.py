"""meshctl: one file per noun; output.py draws, client.py talks, main.py ties together."""
