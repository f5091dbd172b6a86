"""LightningDataModules over datasets."""
