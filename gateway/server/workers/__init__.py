"""Several nodes on one port: a parent that starts them, watches them, and answers for all of them."""
