"""How the schema came about, one revision a file; `chatapp.database.migration` applies them."""
