"""What people and programs are shown of recipes, plans and runs."""
