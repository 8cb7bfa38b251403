"""The verbs on a person's files: localize, separate, events, recognize, generate, sync. One module each."""
