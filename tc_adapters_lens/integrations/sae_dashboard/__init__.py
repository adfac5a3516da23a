"""Feature dashboards by the sae-dashboard package, made to work from the disk without a network."""
