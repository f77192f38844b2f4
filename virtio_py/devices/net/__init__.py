"""The network device (5.1)."""
