"""Device types (chapter 5), one package or module each: what they lay out, and both halves."""
