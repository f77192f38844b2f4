"""PCI: configuration space as layouts, decoded and as a model of a function on a bus. Knows no virtio device type."""
