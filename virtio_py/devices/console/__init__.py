"""The console device (5.3), device id 3."""
