"""What a module's forward does to an image, recorded as an fx graph."""
