"""The configuration: model, loader, validation, and the channels that it declares."""
