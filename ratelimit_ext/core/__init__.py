"""The nouns of rate limiting: limit, charge, verdict, decision. Standard library only."""
