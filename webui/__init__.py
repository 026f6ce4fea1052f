"""The tab in A1111, Forge and Forge-Neo."""
