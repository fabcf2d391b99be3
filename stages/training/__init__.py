"""The one training engine: what ``distill`` and ``stochastok`` share. Importing the package stays light."""
