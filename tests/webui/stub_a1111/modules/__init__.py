"""What this extension uses of A1111's Python interface, as its source (1.10) describes it; no code of it."""
