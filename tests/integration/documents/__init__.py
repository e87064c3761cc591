"""The documents: links lead somewhere, commands that they show do what they show, tables are the code's."""
