"""Values of the configuration that follow from the model, the text and the device where they are not given.

Such a key is left out of conf/, and its default in `ropewalk.config` counts in Python only. Each has a rule here: a
function of what is known, which returns the value and the reason for it.
"""
