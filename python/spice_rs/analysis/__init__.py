"""What can be proven of selections: how good greedy picks must be, and how good these are."""
