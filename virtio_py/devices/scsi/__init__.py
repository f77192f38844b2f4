"""The SCSI host device (5.6): the virtio side (layout, device, driver), and the logical units behind it."""
