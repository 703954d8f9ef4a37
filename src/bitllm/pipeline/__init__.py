"""Recipe, run folder, and the steps between them."""
