"""PCI configuration space: layouts and decoding. Knows no virtio device."""
