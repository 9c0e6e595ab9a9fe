"""Programs that measure gradscope: run from the repository, not installed."""
