"""Stand-ins and sample material the tests share."""
