"""What private inference will take, said before anything runs."""
