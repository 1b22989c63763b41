"""What HTTP needs below the routes: requests, errors, streams, authentication, identities."""
