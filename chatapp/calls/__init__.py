"""One call of a provider: attempts, fallback, settlement, ledger. No Flask."""
