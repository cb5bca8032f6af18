"""Side by side with the field."""
