"""From the bytes of a file to a picture or a volume: what Pillow and tifffile read, NIfTI, DICOM."""
