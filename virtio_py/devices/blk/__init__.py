"""The block device (5.2), device id 2."""
