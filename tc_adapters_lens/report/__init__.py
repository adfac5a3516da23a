"""What a person reads of a result: tables and pictures."""
