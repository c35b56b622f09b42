"""Where images come from: folders, lists, archives, shards, libraries. Each is listed once, and opened by its row."""
