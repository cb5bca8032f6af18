"""The agent: makes one host match its peer map."""
