"""A local page on which a run's features are browsed, filtered, sorted, searched and linked to; and its graphs."""
