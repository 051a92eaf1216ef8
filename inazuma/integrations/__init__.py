"""The operators inside other people's programs. Nothing here is imported by inazuma itself."""
