"""The database of accounts and ledger: its connection, its schema, its migrations."""
