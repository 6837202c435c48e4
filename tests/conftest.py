"""Its being here puts this folder on the import path: helpers are imported by their names."""
