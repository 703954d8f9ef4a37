"""Training on one's own data: one configuration, one folder, one command for each stage."""
