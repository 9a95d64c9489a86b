"""parelu: networks made for private inference, from a ReLU budget to the Pareto frontier."""
