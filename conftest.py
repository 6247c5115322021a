"""What pytest loads wherever it is started: notebooks' numbers are compared within a tolerance."""

pytest_plugins = ["near_numbers"]  # tests/notebooks/near_numbers.py; pyproject.toml puts its folder on the path
