"""One client's connection, from the moment aiohttp hands it over."""
