"""What a frontend developer copies from: it runs, and does what it says."""
