"""Planning: how many bits each layer gets, so that a file of a given size loses least (docs/plan.md)."""
