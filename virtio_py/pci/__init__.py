"""PCI configuration space: layouts and decoding, the virtio capabilities among them. Knows no virtio device type."""
