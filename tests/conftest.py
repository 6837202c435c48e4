"""Its being here puts this folder on the import path: helper modules are imported by their names."""
