"""The command line, virtio-py."""
