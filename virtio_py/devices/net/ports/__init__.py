"""What stands behind a network device: one file a kind of port."""
