"""One file a verb: from a user's options to files on disk. The command line only parses and prints."""
