"""The model of the YAML file: frozen pydantic models, one class per section."""
