"""One demonstration, repeated elsewhere: one-shot transfer of grasps and skills through neural fields."""
