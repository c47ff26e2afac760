"""How much one address, one subject and one client may have."""
