"""The client as a package: what npm packs, its types, and its hook in React."""
