"""The hub: a Django project around the engine."""
