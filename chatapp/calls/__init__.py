"""One call of an upstream: attempts, fallback, settlement, ledger. No Flask."""
