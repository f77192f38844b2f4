"""Carriers (chapter 4 and beyond): each translates its own words to the verbs of DeviceEnd and Transport."""
