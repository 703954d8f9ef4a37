"""BIT-LLM: decode human brain activity (fMRI) into language, and show how much of the text comes from the brain."""

__version__ = "0.1.0"
