"""A local page on which a run's features are browsed: filtered, sorted, searched, opened and linked to; its graphs too."""
