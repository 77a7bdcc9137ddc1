"""What a piece of work costs, by formulas of a model's shape and by traces of its passes; nothing is computed."""
