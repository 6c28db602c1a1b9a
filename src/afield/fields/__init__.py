"""Fields: functions from world points to features, around one scene; docs/fields.md introduces them."""
