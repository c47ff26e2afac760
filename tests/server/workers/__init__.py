"""Several nodes under one parent."""
