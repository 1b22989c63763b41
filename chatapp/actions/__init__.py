"""What operators do, once: the API, the commands and the forms of /admin read this table."""
