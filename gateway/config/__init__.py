"""The YAML file: its model, its loader, the rules across it, and names looked up in it."""
