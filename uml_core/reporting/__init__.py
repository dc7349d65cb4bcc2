"""From an MLflow experiment's runs to a verdict, figures and one HTML page."""
