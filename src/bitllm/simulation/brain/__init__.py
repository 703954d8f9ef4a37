"""The subjects: cortex, tuning and responses."""
