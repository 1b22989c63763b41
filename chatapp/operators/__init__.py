"""What operators do, from the command line and the admin page: users, amounts, blocks."""
