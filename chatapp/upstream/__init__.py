"""The guard in front of the providers: how often one is asked, and what all learn from that."""
