"""The reader of the Natural Scenes Dataset in its own layout."""
