"""What a person runs: the tasks, and the command line ``dnirnn`` that trains and compares them."""
