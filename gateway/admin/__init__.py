"""The console: a page on the admin port, the figures that it shows, and its try-it panel."""
