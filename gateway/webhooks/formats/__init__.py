"""Request bodies to records, one module per family of senders. Pure."""
