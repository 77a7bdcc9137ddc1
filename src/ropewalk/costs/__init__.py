"""What a piece of work costs, as formulas of a model's shape and traces of its passes; nothing is run here."""
