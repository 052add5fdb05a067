"""The stages that methods share: SFT, preferences and reward models."""
