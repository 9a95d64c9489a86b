"""Where the material of the offline phase comes from; one file a mode."""
