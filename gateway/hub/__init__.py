"""One process's channels and who listens to them."""
