"""Values of the configuration that follow from the model, the text and the device where they are not given.

Such a key is left out of conf/, and its default in `ropewalk.config` counts in Python only. Each has a rule here: a
function of what is known that returns the value and, for the reader of the configuration, the reason.
"""
