"""What a run leaves behind and what people read: files, tables, the report."""
