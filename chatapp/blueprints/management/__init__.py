"""/admin/api/v1: what the commands and /admin show and do, as JSON, by the same functions."""
