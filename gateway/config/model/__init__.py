"""What the YAML file may say: frozen pydantic models, one section per class."""
