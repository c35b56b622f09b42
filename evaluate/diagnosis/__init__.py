"""What an accuracy does not say: calibration, hubs, dimension, suspects, and how layers and models agree."""
