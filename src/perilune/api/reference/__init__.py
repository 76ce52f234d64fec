"""What the doors serve, told to machines and people: the OpenAPI document and the page made of it."""
