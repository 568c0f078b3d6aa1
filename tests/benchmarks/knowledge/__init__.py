"""What a search in a knowledge costs, and what it finds."""
