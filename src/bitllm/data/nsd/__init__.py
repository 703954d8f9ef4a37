"""Reader of the Natural Scenes Dataset in its own file layout."""
