"""How the schema changes, one revision a file; `chatapp.database.migration` applies them."""
