"""Authentication and authorization: tokens, tickets and forward auth."""
