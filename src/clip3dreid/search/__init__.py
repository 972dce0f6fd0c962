"""Features of many pictures, and search in them."""
