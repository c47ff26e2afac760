"""Who asks, and which channels that opens: tokens, tickets, and the user's own endpoint."""
