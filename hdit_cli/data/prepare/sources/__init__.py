"""Where pictures come from: folders, zips, tars and lists, told as one listing in one order."""
