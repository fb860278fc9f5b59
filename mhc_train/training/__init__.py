"""Training: the straight loop and the parts that it calls, in the order in which it calls them."""
