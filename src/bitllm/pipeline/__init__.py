"""One recipe, one run folder, and the steps between them."""
