"""`bench report`: one HTML file to look at, made from what a feature set keeps; nothing is searched again."""
