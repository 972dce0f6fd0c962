"""Extract features of many pictures, and search in them."""
