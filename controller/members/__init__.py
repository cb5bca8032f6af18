"""What may happen to a member, from the token that lets it in to the revocation that keeps it out."""
